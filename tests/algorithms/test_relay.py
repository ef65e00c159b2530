"""RelaySGD: relayed sums are exact on every tree, as late as the tree is deep."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.network import Network

TREES = {
    "chain": nx.path_graph(6),
    "star": nx.star_graph(5),
    "random": nx.random_labeled_tree(9, seed=1),
    "pair": nx.path_graph(2),
}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("fill", ["start", "counts"])
@pytest.mark.parametrize("tree", TREES)
def test_a_model_at_distance_d_arrives_after_d_steps(tree, fill, overlap, eps):
    graph = TREES[tree]
    agents, network = len(graph), Network(graphs.from_networkx(graph))
    algorithm = algorithms.make("relaysgd", fill=fill, overlap=overlap)
    rng = np.random.default_rng(0)
    x0 = np.tile(rng.normal(size=3), (agents, 1))
    z = rng.normal(size=(agents, 3))
    state = algorithm.init(jnp.asarray(x0, float), network.round(0))
    relay = jax.jit(
        lambda state, t: algorithm.communicate(jnp.asarray(z, float), state, network.round(t), 0.1)
    )
    distance = nx.floyd_warshall_numpy(graph, nodelist=sorted(graph))
    for t in range(int(distance.max()) + 2):
        x, state, _ = relay(state, t)
        heard = distance <= t + (not overlap)
        missing = (agents - heard.sum(axis=1))[:, None]
        wanted = (heard @ z + missing * x0) / agents
        if fill == "counts":
            wanted = heard @ z / heard.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(x, wanted, rtol=0, atol=80 * eps)
    np.testing.assert_allclose(x, np.tile(z.mean(axis=0), (agents, 1)), rtol=0, atol=80 * eps)


@pytest.mark.parametrize("graph", ["ring", "full", "one-peer-exponential", "random-matching:4"])
def test_needs_a_tree(graph):
    with pytest.raises(ValueError, match=r"take chain or star|does not change"):
        algorithms.get("relaysgd").check(graphs.make(graph, 8))


def test_refuses_another_fill():
    with pytest.raises(ValueError, match="fill is 'zero'; it must be start or counts"):
        algorithms.make("relaysgd", fill="zero")
