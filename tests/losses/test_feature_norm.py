"""The mean squared norm of features: by hand, with padding, and from the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.losses import DISTANCES, Own, get
from ccl_jax.training import Objective
from tests.support import tiny_main
from tests.support.few_steps import FewSteps, same_program
from tests.support.tiny import CLASSES

FEATURES = jnp.array([[1.0, 2.0], [3.0, -4.0], [0.0, 0.0], [9.0, 9.0]])
OWN = Own(FEATURES, jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), jnp.array([True] * 3 + [False]))
NORM = {"feature_losses": (("feature_norm", 1.0),)}


def loss(features, own=OWN):
    return get("feature_norm").loss(own._replace(features=features), {}, DISTANCES["mse"])


def test_value_and_gradient_by_hand():
    value, gradient = jax.value_and_grad(loss)(FEATURES)
    np.testing.assert_allclose(value, (5 + 25 + 0) / 3, rtol=1e-6)
    # 2 z over three samples; the fourth is padding.
    expected = np.array([[2, 4], [6, -8], [0, 0], [0, 0]]) / 3
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_of_an_empty_batch_it_is_zero():
    value, gradient = jax.value_and_grad(loss)(FEATURES, OWN._replace(mask=jnp.zeros(4, bool)))
    assert value == 0 and not gradient.any()


def test_it_makes_features_smaller_and_sends_nothing_more():
    plain, small = FewSteps(), FewSteps(objective=Objective(CLASSES, **NORM))
    for t in range(8):
        plain.step(t)
        small.step(t)
    assert small.bytes_sent() == plain.bytes_sent()
    size = lambda run: float(np.square(run.features()).sum(axis=-1).mean())
    assert size(small) < 0.8 * size(plain)


def test_a_weight_of_zero_is_no_loss_bit_for_bit():
    same_program(Objective(CLASSES), Objective(CLASSES, feature_losses=(("feature_norm", 0.0),)))


@pytest.mark.parametrize("name", ["feature_norm"])
def test_from_the_command_line(name, tmp_path):
    flags = ("--algorithm=dsgd", "--epochs=1", "--eval_every=1", "--batch_size=64", "--nofigures")
    workdir = f"--workdir={tmp_path / 'run'}"
    assert tiny_main.main(["tiny_main", *flags, f"--feature_loss={name}:0.01", workdir]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["label"] == f"{name} + dsgd" and summary[f"{name}_loss"] > 0
