"""When a run is evaluated: as asked for, or no more often than a reader needs."""

import json

import pytest

from ccl_jax.runs import inputs, runner, trainer
from ccl_jax.runs.config import Config
from ccl_jax.runs.directory import RunDirectory
from tests.support import tiny_main

# An epoch is 6 steps of 8 agents with 32 samples, and the test set has 360 images, shown to 9 models.
TRAINING, EVALUATION = 6 * 8 * 32, 9 * 360


def interval(**settings) -> int:
    config = Config(model="mlp", lr=0.1, devices=1, algorithm="qg-dsgdm-n", **settings)
    run = runner.prepare(config.replace(agents=8, batch_size=32))
    return trainer.epochs_between_evaluations(run, inputs.make_feed(run.data, run.config))


@pytest.mark.parametrize(
    "settings, passes, expected",
    [
        ({}, 3, 10),
        ({"lambda_m": 0.1}, 5, 5),
        ({"measure_heterogeneity": True}, 5, 5),
        ({"lambda_m": 0.1, "sam_rho": 0.05}, 8, 5),
        ({"topology": "full", "lambda_m": 0.1, "lambda_d": 0.1}, 10, 5),
        ({"eval_every": 3}, 3, 3),
        ({"eval_every": "7"}, 3, 7),
    ],
)
def test_evaluating_costs_under_a_tenth(settings, passes, expected):
    assert interval(**settings) == expected
    if "eval_every" not in settings:
        smaller = {10: 5, 5: 2}[expected]
        assert 0.1 * expected * TRAINING * passes > EVALUATION
        assert 0.1 * smaller * TRAINING * passes <= EVALUATION


def test_the_first_and_the_last_epoch_are_always_evaluated(tmp_path):
    flags = ("--algorithm=dsgd", "--epochs=12", "--eval_every=auto", "--nofigures", "--devices=1")
    assert tiny_main.main(["x", *flags, "--noprogress", f"--workdir={tmp_path}"]) == 0
    rows = RunDirectory(tmp_path).read_metrics()
    evaluated = [row["epoch"] for row in rows if "consensus_accuracy" in row]
    assert evaluated == [1, 5, 10, 12]
    assert json.loads((tmp_path / "config.json").read_text())["eval_every"] == "auto"


@pytest.mark.parametrize("value", [0, "0", "often", 1.5, True])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match=f"eval_every is {value}; it must be auto or a whole"):
        Config(eval_every=value)
