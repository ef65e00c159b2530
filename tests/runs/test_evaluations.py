"""When a run is evaluated: as asked for, or no more often than a reader needs."""

import contextlib
import itertools
import json
import signal

import jax
import numpy as np
import pytest

from ccl_jax.runs import inputs, runner, trainer
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.runs.config import Config
from ccl_jax.runs.directory import RunDirectory
from tests.support import tiny_main
from tests.support.small_run import same_rows, without_seconds

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


def train(folder, *flags) -> int:
    """The exit code of twelve epochs of 15 steps."""
    flags = ("--algorithm=dsgd", "--epochs=12", "--eval_every=auto", "--devices=1", *flags)
    return tiny_main.main(["x", *flags, "--nofigures", "--noprogress", f"--workdir={folder}"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder) == 0
    return folder


def test_the_first_and_the_last_epoch_are_always_evaluated(whole):
    rows = RunDirectory(whole).read_metrics()
    evaluated = [row["epoch"] for row in rows if "consensus_accuracy" in row]
    assert evaluated == [1, 5, 10, 12]
    assert json.loads((whole / "config.json").read_text())["eval_every"] == "auto"


def stop_signals_after(steps: int):
    """In place of `runner.stop_signals`: a signal comes in that step of the process."""

    @contextlib.contextmanager
    def stop_signals():
        # Asked twice before the first step, where the run begins and before it compiles, then in each.
        answers = itertools.chain([0] * (2 + steps - 1), itertools.repeat(signal.SIGTERM))
        yield lambda: next(answers)

    return stop_signals


def test_a_run_that_is_stopped_is_evaluated_at_the_same_epochs(whole, tmp_path, monkeypatch):
    # Before the first evaluation, right after it, and between two.
    for before, step in ((0, 7), (7, 15), (15, 35)):
        with monkeypatch.context() as patch:
            patch.setattr(runner, "stop_signals", stop_signals_after(step - before))
            assert train(tmp_path, *["--resume"] * (before > 0)) == 128 + signal.SIGTERM
        assert max(Checkpoints(tmp_path / "checkpoints").steps()) == step
    assert train(tmp_path, "--resume") == 0
    rows = [RunDirectory(folder).read_metrics() for folder in (tmp_path, whole)]
    same_rows(*map(without_seconds, rows))
    ends = [Checkpoints(folder / "checkpoints").arrays(12 * 15) for folder in (tmp_path, whole)]
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize("value", [0, "0", "often", 1.5, True])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match=f"eval_every is {value}; it must be auto or a whole"):
        Config(eval_every=value)
