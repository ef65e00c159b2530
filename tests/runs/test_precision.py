"""What `--precision` does to the products of a run, and which it leaves alone."""

import re

import jax
import jax.numpy as jnp
import pytest

from ccl_jax import algorithms, graphs, models, training
from ccl_jax.devices import parallel
from ccl_jax.losses import Batch
from ccl_jax.network import Network
from ccl_jax.runs import runner, trainer
from ccl_jax.runs.config import Config
from ccl_jax.training import Objective
from tests.support import tiny_main

RUN = Config(model="digits-cnn", agents=3, epochs=1, progress=False, figures=False)


def precisions() -> list[str]:
    """Those of all products of CCL's step, as it is traced now."""
    model, image = models.make("digits-cnn", 10), (8, 8, 1)
    parts = (algorithms.make("dsgd"), Network(graphs.make("ring", 3)), Objective(10, 0.1, 0.1))
    state = training.init_state(model, *parts, image, jax.random.key(0))
    step = training.make_step(model, *parts, lambda t: jnp.float32(0.1))
    batch = Batch(jnp.zeros((3, 2, *image)), jnp.zeros((3, 2), jnp.int32), jnp.ones((3, 2), bool))
    text = jax.jit(step).lower(state, batch).as_text()
    lines = re.findall(r"= stablehlo\.(?:convolution|dot_general).*", text)
    return [re.search(r"precision = \[(\w+), \1\]", line)[1] for line in lines]


@pytest.mark.parametrize("precision, expected", [("default", None), ("highest", "highest")])
def test_a_run_is_traced_with_its_precision(precision, expected, monkeypatch, tmp_path):
    seen = []
    look = lambda run, stop: seen.append(jax.config.jax_default_matmul_precision) or {}
    monkeypatch.setattr(trainer, "train", look)
    runner.train(RUN.replace(workdir=str(tmp_path / "run"), precision=precision))
    assert seen == [expected]
    assert jax.config.jax_default_matmul_precision is None


def test_highest_is_for_all_products_and_gossip_has_it_anyway():
    usual = precisions()
    # Six arrays of parameters are mixed, and sums of classes made.
    assert 6 < usual.count("HIGHEST") < len(usual) == 22
    assert set(usual) == {"DEFAULT", "HIGHEST"}
    with jax.default_matmul_precision("highest"):
        assert precisions() == ["HIGHEST"] * 22


def test_what_needs_float64_is_refused_on_a_tpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parallel.Plan, "platform", "tpu")
    argv = ["tiny_main", "--algorithm=cga", f"--workdir={tmp_path / 'run'}"]
    assert tiny_main.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cga needs float64, which a TPU does not have")
    assert not (tmp_path / "run").exists()
