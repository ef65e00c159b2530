"""AdaGossip: its recursion once more, and when it is plain gossip."""

import numpy as np
import pytest

from ccl_jax import algorithms
from ccl_jax.network import compression
from tests.algorithms.quadratics import Quadratics, ring_weights, top_k

AGENTS, SIZE, KEPT, BETA, B2 = 6, 6, 2, 0.5, 0.99
TOP = compression.top_k(KEPT / SIZE)
RATES = [0.05] * 8 + [0.01] * 8


def problem(**talk):
    return Quadratics(AGENTS, SIZE, seed=7, **talk)


def recursion(gamma, quasi_global, local_steps, b2=B2):
    """The exchange of a step before its gradient; none in the first step, where all are equal."""
    q, mix = problem(), ring_weights(AGENTS) - np.eye(AGENTS)
    x = np.tile(q.start, (AGENTS, 1))
    h, m, s, exchanges, path = np.zeros_like(x), np.zeros_like(x), 0, 0, []
    for t, eta in enumerate(RATES):
        if t > 0 and t % local_steps == 0:
            h = h + top_k(x - h, KEPT)
            exchanges += 1
            r = mix @ h
            s = b2 * s + (1 - b2) * r**2
            r = r * np.minimum(1, gamma / (np.sqrt(s / (1 - b2**exchanges)) + 1e-8))
            x = x + r
            if quasi_global:
                m = m - r / RATES[t - 1]
        u = q.gradients(x) + 0.02 * x
        m = BETA * m + u
        x = x - eta * (u + BETA * m)
        path.append(x)
    return np.stack(path)


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize("quasi_global", [False, True])
def test_it_is_the_published_recursion(quasi_global, local_steps, float64):
    hyper = {"momentum": BETA, "b2": B2, "weight_decay": 0.02}
    algorithm = algorithms.make(
        "adagossip", gossip_rate=0.06, quasi_global_momentum=quasi_global, **hyper
    )
    q = problem(compressor=TOP, compression_start="zero", local_steps=local_steps)
    expected = recursion(0.06, quasi_global, local_steps)
    np.testing.assert_allclose(q.run(algorithm, RATES), expected, rtol=0, atol=1e-12)
    # The rate matters; it is not everywhere at its bound.
    assert np.abs(recursion(1.0, quasi_global, local_steps) - expected).max() > 0.01


def test_without_a_memory_of_moves(float64):
    """At b2 = 0 a coordinate moves by gamma, or by all of h where that is less."""
    hyper = {"momentum": BETA, "b2": 0.0, "weight_decay": 0.02}
    q = problem(compressor=TOP, compression_start="zero")
    ours = q.run(algorithms.make("adagossip", gossip_rate=0.06, **hyper), RATES)
    np.testing.assert_allclose(ours, recursion(0.06, False, 1, b2=0.0), rtol=0, atol=1e-12)


def test_where_every_coordinate_is_at_the_bound_it_is_gossip_at_rate_1():
    """Where gossip has never moved a coordinate by more than 1, the root of s is below 1."""
    q, rates = problem(compressor=TOP), [0.01] * 16
    dsgd = q.run(algorithms.make("dsgdm-n", gossip_rate=1.0), rates)
    ours = q.run(algorithms.make("adagossip", gossip_rate=1.0), rates)
    np.testing.assert_allclose(ours, dsgd, rtol=0, atol=1e-5)
    assert np.abs(dsgd - q.run(algorithms.make("dsgdm-n", gossip_rate=0.9), rates)).max() > 0.01
