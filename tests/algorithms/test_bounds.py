"""The methods to compare with: all-reduce, no communication, federated averaging."""

import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.network import Network
from tests.algorithms.quadratics import Quadratics

LR, AGENTS = 0.05, 5


@pytest.fixture
def quadratics():
    return Quadratics(agents=AGENTS, size=3, seed=5)


def gradients(quadratics, x):
    return np.stack([quadratics.gradient(i, x[i]) for i in range(AGENTS)])


def test_federated_averaging_is_the_published_one(quadratics, eps):
    # Rounds of 3 local steps; the average of a round opens the next.
    quadratics.network = Network(graphs.make("star", AGENTS), local_steps=3)
    path = quadratics.run(algorithms.make("fedavg", weight_decay=0.0), [LR] * 9)
    server = quadratics.start
    for r in range(3):
        clients = np.tile(server, (AGENTS, 1))
        for k in range(3):
            clients = clients - LR * gradients(quadratics, clients)
            np.testing.assert_allclose(path[3 * r + k], clients, rtol=0, atol=80 * eps)
        server = clients.mean(axis=0)


def test_all_reduce_keeps_agents_equal_and_sees_all_data(quadratics, eps):
    algorithm = algorithms.make("all-reduce", momentum=0.0, nesterov=False, weight_decay=0.0)
    path = quadratics.run(algorithm, [LR] * 5)
    x = np.tile(quadratics.start, (AGENTS, 1))
    for agents in path:
        x = x - LR * gradients(quadratics, x).mean(axis=0)
        np.testing.assert_allclose(agents, x, rtol=0, atol=80 * eps)


def test_isolated_agents_see_their_own(quadratics, eps):
    algorithm = algorithms.make("isolated", momentum=0.5, nesterov=False, weight_decay=0.0)
    x, m = np.tile(quadratics.start, (AGENTS, 1)), 0.0
    for agents in quadratics.run(algorithm, [LR] * 5):
        m = 0.5 * m + gradients(quadratics, x)
        x = x - LR * m
        np.testing.assert_allclose(agents, x, rtol=0, atol=80 * eps)


def test_fedavg_needs_a_star():
    algorithms.get("fedavg").check(graphs.make("star", 6))
    for graph in ("ring", "chain", "full"):
        with pytest.raises(ValueError, match="needs a star"):
            algorithms.get("fedavg").check(graphs.make(graph, 6))
