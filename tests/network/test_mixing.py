"""Weighted averages over neighbours: dense and sparse are the same, and both are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import graphs
from ccl_jax.graphs import topology
from ccl_jax.network import Network, mixing

KINDS = ("dense", "sparse")
# 0 hears 1 and 2, 1 hears 0, 2 hears nobody, 3 hears 0 twice: directed, irregular, a double edge.
ODD = topology.from_neighbors("odd", np.array([[1, 2], [0, -1], [-1, -1], [0, 0]]))
PUSH = topology.from_matrix("push", np.array([[0.7, 0.5], [0.3, 0.5]]), stochastic="column")


def mix(graph, kind, x, step=0, **settings):
    talk = Network(graph, mixing=kind, **settings).round(step)
    return talk.mix(talk.send("x", x))


@pytest.mark.parametrize("kind", KINDS)
def test_by_hand(kind):
    # Equal weights, to oneself and to every edge.
    np.testing.assert_allclose(
        mix(ODD, kind, jnp.array([3.0, 6.0, 12.0, 0.0])), [7.0, 4.5, 12.0, 2.0], rtol=1e-6
    )
    np.testing.assert_allclose(mix(PUSH, kind, jnp.array([10.0, 20.0])), [17.0, 13.0], rtol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"gossip_steps": 3}, {"local_steps": 2}])
@pytest.mark.parametrize("name", ["dyck", "random-regular:3:2", "exponential"])
def test_sparse_is_dense(name, settings):
    graph = graphs.make(name, 32 if name == "dyck" else 12, seed=1)
    rng = np.random.default_rng(0)
    shapes = {"w": (graph.agents, 3, 2), "b": (graph.agents,)}
    x = {k: jnp.asarray(rng.normal(size=shape), jnp.float32) for k, shape in shapes.items()}
    for step in range(2):
        one, other = (mix(graph, kind, x, step, **settings) for kind in KINDS)
        for key in x:
            np.testing.assert_allclose(one[key], other[key], rtol=0, atol=1e-6)


def test_the_cheaper_one_is_taken_by_itself():
    # A matrix product goes over rows eight times as fast.
    assert mixing.choose("auto", degree=2, agents=24) is mixing.dense
    assert mixing.choose("auto", degree=2, agents=25) is mixing.sparse
    for agents in (2, 1000):
        assert mixing.choose("dense", degree=2, agents=agents) is mixing.dense
        assert mixing.choose("sparse", degree=2, agents=agents) is mixing.sparse


def test_another_way_of_mixing_is_refused():
    with pytest.raises(
        ValueError, match=r"unknown mixing 'spares': did you mean 'sparse'.*auto, dense, sparse"
    ):
        Network(ODD, mixing="spares")


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_is_summed_in_float32(kind):
    # bfloat16 has 8 bits: 64 + 1/4 is 64 again, but 64.75 rounds to 65.
    x = jnp.array([256.0, 1.0, 1.0, 1.0], jnp.bfloat16)
    mixed = mix(graphs.make("full", 4), kind, x)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mixed.astype(jnp.float32), [65.0] * 4)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_is_exact(kind):
    with jax.enable_x64(True):
        mixed = mix(graphs.make("ring", 5), kind, jnp.eye(5, dtype=jnp.float64))
        assert mixed.dtype == jnp.float64
        np.testing.assert_allclose(mixed[1], [1 / 3, 1 / 3, 1 / 3, 0, 0], rtol=1e-15, atol=0)
