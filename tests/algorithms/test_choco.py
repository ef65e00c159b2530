"""CHOCO-SGD: both published loops, and what it is without compression."""

import numpy as np
import pytest

from ccl_jax import algorithms
from ccl_jax.network import compression
from tests.algorithms.quadratics import Quadratics, ring_weights, top_k

AGENTS, SIZE, KEPT, GAMMA, BETA = 6, 6, 2, 0.3, 0.5
TOP = compression.top_k(KEPT / SIZE)
RATES = [0.05] * 8 + [0.01] * 6


def problem(**talk):
    return Quadratics(AGENTS, SIZE, seed=6, **talk)


@pytest.mark.parametrize("start", ["zero", "model"])
def test_mixed_with_the_new_copies(start, float64):
    """Adapt, then combine: x is recorded before it is mixed, as ours."""
    q, mix = problem(), ring_weights(AGENTS) - np.eye(AGENTS)
    x = np.tile(q.start, (AGENTS, 1))
    h, m, path = x * (start == "model"), 0, []
    for eta in RATES:
        m = BETA * m + q.gradients(x)
        x = x - eta * m
        path.append(x)
        h = h + top_k(x - h, KEPT)
        x = x + GAMMA * mix @ h
    algorithm = algorithms.make("choco-sgd", momentum=BETA, weight_decay=0.0, gossip_rate=GAMMA)
    ours = problem(compressor=TOP, compression_start=start).run(algorithm, RATES)
    np.testing.assert_allclose(ours, path, rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", ["zero", "model"])
def test_mixed_with_the_copies_of_the_step_before(start, float64):
    q, mix = problem(), ring_weights(AGENTS) - np.eye(AGENTS)
    x = np.tile(q.start, (AGENTS, 1))
    h, m, path = x * (start == "model"), 0, []
    for eta in RATES:
        m = BETA * m + q.gradients(x)
        x = x - eta * m + GAMMA * mix @ h
        h = h + top_k(x - h, KEPT)
        path.append(x)
    hyper = {"momentum": BETA, "weight_decay": 0.0, "gradient_at": "unmixed"}
    algorithm = algorithms.make("choco-sgd", gossip_rate=GAMMA, **hyper)
    ours = problem(compressor=TOP, compression_start=start).run(algorithm, RATES)
    np.testing.assert_allclose(ours, path, rtol=0, atol=1e-12)


def test_without_compression_it_is_dsgd():
    ours = problem().run(algorithms.make("choco-sgd", gossip_rate=GAMMA), RATES)
    dsgd = problem().run(algorithms.make("dsgd", gossip_rate=GAMMA), RATES)
    np.testing.assert_array_equal(ours, dsgd)
