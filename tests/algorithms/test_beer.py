"""BEER and MoTEF: the published loops, where they go, and what they are without compression."""

import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.network import compression
from tests.algorithms.quadratics import Quadratics, ring_weights, top_k

AGENTS, SIZE, KEPT, GAMMA = 6, 6, 2, 0.3
TOP = compression.top_k(KEPT / SIZE)
RATES = [0.05] * 8 + [0.01] * 6


def problem(**talk):
    return Quadratics(AGENTS, SIZE, seed=5, **talk)


def published(rates, beta, zero_start):
    """X from the copies, then the copies from X, as it is published."""
    q, mix = problem(), ring_weights(AGENTS) - np.eye(AGENTS)
    x = np.tile(q.start, (AGENTS, 1))
    v = m = q.gradients(x)
    # Here a run may start with copies that know the common start, and its first tracker compressed.
    h, g = (np.zeros_like(x), np.zeros_like(x)) if zero_start else (x.copy(), top_k(v, KEPT))
    path = []
    for eta in rates:
        x = x + GAMMA * mix @ h - eta * v
        h = h + top_k(x - h, KEPT)
        m_new = beta * m + (1 - beta) * q.gradients(x)
        v = v + GAMMA * mix @ g + m_new - m
        m = m_new
        g = g + top_k(v - g, KEPT)
        path.append(x)
    return np.stack(path)


@pytest.mark.parametrize("start", ["zero", "model"])
@pytest.mark.parametrize("name, beta", [("beer", 0.0), ("motef", 0.7)])
def test_it_is_the_published_recursion(name, beta, start, float64):
    momentum = {"momentum": beta} if name == "motef" else {}
    algorithm = algorithms.make(name, gossip_rate=GAMMA, weight_decay=0.0, **momentum)
    ours = problem(compressor=TOP, compression_start=start).run(algorithm, RATES)
    # A learning rate belongs to the tracker of its step, in both.
    np.testing.assert_allclose(ours, published(RATES, beta, start == "zero"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", ["zero", "model"])
@pytest.mark.parametrize("name", ["beer", "motef"])
def test_compressed_trackers_reach_the_optimum_where_compressed_dsgd_stalls(name, start, float64):
    q = problem(compressor=TOP, compression_start=start)
    away = lambda name, **hyper: np.abs(
        q.run(algorithms.make(name, weight_decay=0.0, gossip_rate=0.2, **hyper), [0.05] * 1200)[-1]
        - q.optimum
    ).max()
    assert away(name) < 1e-9
    assert away("dsgd") > 0.1
    assert away("choco-sgd", momentum=0.5) > 0.1


def test_with_the_zero_start_of_the_published_experiments_it_stays_away(float64):
    algorithm = algorithms.make("motef", weight_decay=0.0, gossip_rate=0.2, start="zero")
    q = problem(compressor=TOP, compression_start="zero")
    end = q.run(algorithm, [0.05] * 1200)[-1]
    # The mean of v is the mean of m and of g_0 for good: it rests where the mean gradient is -g_0.
    offset = q.gradients(np.tile(q.start, (AGENTS, 1))).mean(axis=0)
    rest = q.optimum - np.linalg.solve(q.curvature.mean(axis=0), offset)
    np.testing.assert_allclose(end, np.tile(rest, (AGENTS, 1)), rtol=0, atol=1e-9)
    assert np.abs(rest - q.optimum).max() > 0.1


def test_without_compression_beer_is_gradient_tracking(eps):
    q, shared = problem(), {"weight_decay": 0.02, "gossip_rate": 0.8}
    ours = q.run(algorithms.make("beer", **shared), RATES)
    # It exchanges trackers one step earlier, which only the first one notices.
    tracking = q.run(algorithms.make("dsgt", momentum=0.0, **shared), RATES)
    np.testing.assert_allclose(ours, tracking, rtol=0, atol=200 * eps)


def test_motef_without_momentum_is_beer(eps):
    q = problem(compressor=TOP)
    ours = q.run(algorithms.make("motef", momentum=0.0, gossip_rate=GAMMA), RATES)
    beer = q.run(algorithms.make("beer", gossip_rate=GAMMA), RATES)
    np.testing.assert_array_equal(ours, beer)


def test_refuses():
    with pytest.raises(ValueError, match="start is 'x'; it must be gradient or zero"):
        algorithms.make("motef", start="x")
    with pytest.raises(ValueError, match="beer has no hyper-parameter momentum"):
        algorithms.make("beer", momentum=0.5)
    with pytest.raises(ValueError, match="needs a doubly stochastic mixing matrix"):
        algorithms.get("beer").check(graphs.make("star", 5))
