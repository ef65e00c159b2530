"""Neighbourhood gradient clustering, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.network import Network


@pytest.mark.parametrize(
    "alpha, merged",
    [
        # A chain of three; M[i] what i computes with its neighbours' models, below.
        (0.0, [(1 + 10) / 2, (2 + 20 + 30) / 3, (3 + 40) / 2]),
        # What comes back: to 0 what 1 computed with its model (20), to 1 from 0 and 2 (10, 40) ...
        (1.0, [(1 + 20) / 2, (2 + 10 + 40) / 3, (3 + 30) / 2]),
        (0.5, [(1 + 15) / 2, (2 + 50) / 3, (3 + 35) / 2]),
    ],
)
def test_merged_gradients(alpha, merged):
    network = Network(graphs.make("chain", 3)).round(0)
    algorithm = algorithms.make("ngc", alpha=alpha)
    own = jnp.array([[1.0], [2.0], [3.0]])
    cross = jnp.array([[[10.0], [0.0]], [[20.0], [30.0]], [[40.0], [0.0]]])
    state = algorithm.init(own, network)
    got, _ = algorithm.combine(own, cross, state, network)
    np.testing.assert_allclose(got[:, 0], merged, rtol=1e-6)


def test_compressed_gradients_are_made_up_for():
    network = Network(graphs.make("ring", 3)).round(0)
    algorithm = algorithms.make("comp-ngc", alpha=0.0)
    rng = np.random.default_rng(0)
    own = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    cross = jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32)
    state, total = algorithm.init(own, network), np.zeros((3, 4))
    for _ in range(50):
        got, state = algorithm.combine(own, cross, state, network)
        total += got
    exact = (own + cross.sum(axis=1)) / 3
    np.testing.assert_allclose(total / 50, exact, atol=0.1)
    assert np.abs(got - exact).max() > 0.2  # though each message is only signs


def test_refuses():
    with pytest.raises(ValueError, match=r"alpha of NGC is 1.5; it must be in \[0, 1\]"):
        algorithms.make("ngc", alpha=1.5)
    for name in ("ngc", "comp-ngc", "cga", "comp-cga"):
        with pytest.raises(ValueError, match=r"undirected|does not change"):
            algorithms.get(name).check(graphs.make("one-peer-exponential", 8))
    with pytest.raises(ValueError, match="does not change"):  # memories belong to neighbours
        algorithms.get("comp-ngc").check(graphs.make("random-matching:4", 6))
