"""FedDecorr against recordings of its authors' code, by hand, and with padding."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import losses
from ccl_jax.losses import Own

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "fixtures/methods_2026/feddecorr_loss_a.npz")
CASES = range(len(json.loads(str(RECORDED["config"]))["cases"]))


def loss(x, mask=None):
    mask = jnp.ones(len(x), bool) if mask is None else mask
    own = Own(x, jnp.zeros((len(x), 2), x.dtype), jnp.zeros(len(x), jnp.int32), mask)
    return losses.get("decorrelation").loss(own, {}, losses.DISTANCES["mse"])


@pytest.mark.parametrize("k", CASES)
def test_replays_the_authors_code(k, float64):
    x = jnp.asarray(RECORDED[f"case{k}.x"], jnp.float64)
    value, gradient = jax.value_and_grad(loss)(x)
    np.testing.assert_allclose(value, RECORDED[f"case{k}.loss"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(gradient, RECORDED[f"case{k}.grad_x"], rtol=1e-10, atol=1e-13)


def test_two_columns_by_hand():
    # Centred (-1, 0, 1) and (-1, 2, -1) are orthogonal; twice the first column is not to itself.
    x = jnp.array([[1.0, 0.0], [2.0, 3.0], [3.0, 0.0]])
    assert float(loss(x)) == pytest.approx(0.0, abs=1e-12)
    # y of length sqrt(N - 1) in both columns: K = N - 1 = 2 off the diagonal, 2^2 / 3 samples.
    same = jnp.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    assert float(loss(same)) == pytest.approx(4 / 3, rel=1e-6)


def test_padding_counts_for_nothing():
    x = jnp.asarray(RECORDED["case1.x"])
    padded = jnp.concatenate([x, jnp.full((4, x.shape[1]), 7.0)])
    mask = jnp.arange(len(padded)) < len(x)
    value, gradient = jax.value_and_grad(loss)(padded, mask)
    assert float(value) == pytest.approx(float(loss(x)), rel=1e-6)
    np.testing.assert_array_equal(gradient[len(x) :], 0.0)


@pytest.mark.parametrize("samples", [0, 1])
def test_of_one_sample_or_none_there_is_no_correlation(samples):
    x = jnp.asarray(RECORDED["case1.x"])
    value, gradient = jax.value_and_grad(loss)(x, jnp.arange(len(x)) < samples)
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)
