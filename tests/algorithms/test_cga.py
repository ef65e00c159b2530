"""Cross-gradient aggregation: its quadratic programme against a reference solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from ccl_jax import algorithms, graphs
from ccl_jax.algorithms import cga
from ccl_jax.network import Network


def reference(rows, r0, margin):
    """r0 + R^T v for the best v >= margin, in float64."""
    result = lsq_linear(rows.T, -r0, bounds=(margin, np.inf), method="bvls", tol=1e-14)
    return r0 + rows.T @ result.x


@jax.jit
def solve(rows, r0, margin):
    return jax.vmap(lambda r, x: cga.solve(r @ r.T, r @ x, margin))(rows, r0)


def merged(rows, r0, margin):
    v = np.asarray(solve(jnp.asarray(rows, jnp.float32), jnp.asarray(r0, jnp.float32), margin))
    assert (v >= margin * (1 - 1e-6)).all()
    return r0 + np.einsum("kdx,kd->kx", rows, v)


def problems(kind, degree, size, rng):
    rows, r0 = rng.normal(size=(100, degree, size)), rng.normal(size=(100, size))
    if kind == "nearly parallel":
        rows = rows[:, :1] + 1e-2 * rows
    elif kind == "repeated":
        rows[:, 1] = rows[:, 0]
    elif kind == "near the optimum":  # gradients that cancel: the answer is nearly 0
        rows[:, -1] = -rows[:, :-1].sum(axis=1) - r0 + 0.05 * rng.normal(size=r0.shape)
    elif kind == "padded":
        rows[:, 1:] = 0
    return rows, r0


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("degree, size", [(2, 6), (4, 6), (2, 20), (7, 20)])
@pytest.mark.parametrize(
    "kind", ["random", "nearly parallel", "repeated", "near the optimum", "padded"]
)
def test_solver(kind, degree, size, margin):
    rows, r0 = problems(kind, degree, size, np.random.default_rng(0))
    wanted = np.stack([reference(r, x, margin) for r, x in zip(rows, r0, strict=True)])
    np.testing.assert_allclose(merged(rows, r0, margin), wanted, atol=2e-4)


@pytest.mark.parametrize("degree, size", [(4, 2), (7, 4), (7, 2)])
def test_more_neighbours_than_coordinates(degree, size):
    # Singular: v is not unique, the merged gradient is. The objective is what counts where rows nearly
    # cancel with enormous v, which float32 cannot resolve.
    rows, r0 = problems("random", degree, size, np.random.default_rng(1))
    wanted = np.stack([reference(r, x, 0.5) for r, x in zip(rows, r0, strict=True)])
    errors = np.abs(merged(rows, r0, 0.5) - wanted).max(axis=1)
    assert np.quantile(errors, 0.9) < 1e-4
    assert np.isfinite(errors).all()


def test_by_hand():
    # One neighbour with the opposite gradient, twice as long: v = 0.5 makes them cancel.
    network = Network(graphs.make("ring", 2)).round(0)
    algorithm = algorithms.make("cga")
    own = jnp.array([[2.0, 0.0], [0.0, 2.0]])
    # What comes back to 0 is what 1 made for it, and the other way round.
    cross = jnp.array([[[0.0, 6.0]], [[-4.0, 0.0]]])
    got, _ = algorithm.combine(own, cross, algorithm.init(own, network), network)
    # Weights are 1/2: r0 = (1, 0), R = (-2, 0): v = 1/2. For 1: (0, 1) + 1/2 (0, 3).
    np.testing.assert_allclose(got, [[0.0, 0.0], [0.0, 2.5]], atol=1e-6)
