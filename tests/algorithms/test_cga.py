"""Cross-gradient aggregation: its quadratic programme against a reference solver."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from ccl_jax import algorithms, graphs
from ccl_jax.algorithms import cga
from ccl_jax.network import Network


def reference(rows, r0, margin):
    """r0 + R^T v for the best v >= margin: non-negative least squares in u = v - margin."""
    u, _ = nnls(rows.T, -(r0 + margin * rows.sum(axis=0)), maxiter=10_000)
    return r0 + rows.T @ (margin + u)


@partial(jax.jit, static_argnums=2)
def merged(r0, rows, margin):
    return cga.directions([r0], [rows], margin)[0]


@partial(jax.jit, static_argnums=2)
def solve(rows, r0, margin):
    return jax.vmap(lambda r, x: cga.solve(r @ r.T, r @ x, margin))(rows, r0)


def check(rows, r0, margin):
    rows, r0 = (x.astype(np.float32) for x in (rows, r0))
    with jax.enable_x64(True):
        v = np.asarray(solve(rows.astype(np.float64), r0.astype(np.float64), margin))
    assert v.dtype == jnp.float64 and (v >= margin * (1 - 1e-6)).all()
    wanted = [
        reference(np.float64(r), np.float64(x), margin) for r, x in zip(rows, r0, strict=True)
    ]
    np.testing.assert_allclose(merged(r0, rows, margin), np.stack(wanted), atol=5e-6)


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


QUICK = [(2, 6, 0.0), (4, 6, 0.5), (7, 20, 0.5)]
SHAPES = [
    pytest.param(*shape, margin, marks=() if (*shape, margin) in QUICK else pytest.mark.slow)
    for shape in [(2, 6), (4, 6), (2, 20), (7, 20)]
    for margin in (0.0, 0.5)
]


@pytest.mark.parametrize("degree, size, margin", SHAPES)
@pytest.mark.parametrize(
    "kind", ["random", "nearly parallel", "repeated", "near the optimum", "padded"]
)
def test_solver(kind, degree, size, margin):
    rows, r0 = problems(kind, degree, size, np.random.default_rng(0))
    check(rows, r0, margin)


@pytest.mark.parametrize("degree, size", [(3, 3), (4, 2), (7, 2), (7, 4), (7, 6), (15, 8)])
def test_more_neighbours_than_coordinates(degree, size):
    """Singular programmes: v is not unique, the merged gradient is."""
    rows, r0 = problems("random", degree, size, np.random.default_rng(1))
    check(rows, r0, 0.5)


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
