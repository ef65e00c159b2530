"""DecentLaM: momentum that does not add to the bias of gossip."""

import numpy as np

from ccl_jax import algorithms
from tests.algorithms.quadratics import Quadratics, ring_weights


def half_steps(quadratics, momentum, rates):
    """What the agents send, x - eta u, by the recursion of the docstring in float64."""
    w, x = ring_weights(quadratics.agents), np.tile(quadratics.start, (quadratics.agents, 1))
    m, sent = np.zeros_like(x), []
    for eta in rates:
        sent.append(x - eta * np.stack([quadratics.gradient(i, x[i]) for i in range(len(x))]))
        m = momentum * m + (x - w @ sent[-1]) / eta
        x = x - eta * m
    return np.stack(sent)


def test_the_recursion(eps):
    quadratics = Quadratics(agents=5, size=3, seed=6)
    rates = [0.05] * 8 + [0.01] * 4
    for momentum in (0.0, 0.7):
        algorithm = algorithms.make("decentlam", momentum=momentum, weight_decay=0.0)
        np.testing.assert_allclose(
            quadratics.run(algorithm, rates),
            half_steps(quadratics, momentum, rates),
            rtol=0,
            atol=160 * eps,
        )


def test_without_momentum_it_is_dsgd(eps):
    quadratics = Quadratics(agents=5, size=3, seed=6)
    ours = quadratics.run(algorithms.make("decentlam", momentum=0.0, weight_decay=0.0), [0.05] * 9)
    dsgd = quadratics.run(algorithms.make("dsgd", weight_decay=0.0), [0.05] * 9)
    np.testing.assert_allclose(ours, dsgd, rtol=0, atol=80 * eps)
