"""Quasi-global momentum against MATHS.md's recursions as plain loops, on heterogeneous quadratics."""

import numpy as np
import pytest

from ccl_jax import algorithms
from tests.algorithms.quadratics import Quadratics, ring_weights

PROBLEM = Quadratics(agents=6, size=3, seed=1)
RATES = [0.1, 0.1, 0.05, 0.05, 0.01, 0.01]
DECAY = 0.05
SUFFIX = {True: "-n", False: ""}


def displacement(beta, nesterov, gamma):
    """As the authors of CCL run it: the momentum takes up what gossip moved."""
    n, weights = PROBLEM.agents, ring_weights(PROBLEM.agents)
    x = [PROBLEM.start.copy() for _ in range(n)]
    m = [np.zeros(PROBLEM.size) for _ in range(n)]
    eta_previous = RATES[0]
    path = []
    for eta in RATES:
        r = [gamma * sum(weights[i, j] * (x[j] - x[i]) for j in range(n)) for i in range(n)]
        for i in range(n):
            mixed = x[i] + r[i]
            m[i] = m[i] - r[i] / eta_previous
            u = PROBLEM.gradient(i, mixed) + DECAY * mixed
            m[i] = beta * m[i] + u
            d = u + beta * m[i] if nesterov else m[i]
            x[i] = mixed - eta * d
        eta_previous = eta
        path.append(np.array(x))
    return np.array(path)


def moving_average(beta, nesterov, factor):
    """As Lin et al. publish it, adapt then combine; returns the half steps that agents send."""
    n, weights = PROBLEM.agents, ring_weights(PROBLEM.agents)
    x = np.tile(PROBLEM.start, (n, 1))
    kept = np.zeros_like(x)
    path = []
    for eta in RATES:
        u = np.array([PROBLEM.gradient(i, x[i]) + DECAY * x[i] for i in range(n)])
        m = beta * kept + u
        half = x - eta * (u + beta * m if nesterov else m)
        new = weights @ half
        kept = (1 - factor) * kept + factor * (x - new) / eta
        x = new
        path.append(half)
    return np.array(path)


@pytest.mark.parametrize("gamma", [1.0, 0.7])
@pytest.mark.parametrize("nesterov", [True, False])
def test_displacement_follows_the_recursion(nesterov, gamma, eps):
    algorithm = algorithms.make(
        f"qg-dsgdm{SUFFIX[nesterov]}", momentum=0.8, weight_decay=DECAY, gossip_rate=gamma
    )
    expected = displacement(0.8, nesterov, gamma)
    np.testing.assert_allclose(PROBLEM.run(algorithm, RATES), expected, rtol=0, atol=160 * eps)


@pytest.mark.parametrize("factor", [0.1, 0.4])
@pytest.mark.parametrize("nesterov", [True, False])
def test_moving_average_follows_the_recursion(nesterov, factor, eps):
    algorithm = algorithms.make(
        f"qg-dsgdm{SUFFIX[nesterov]}-ema", momentum=0.8, weight_decay=DECAY, ema_factor=factor
    )
    expected = moving_average(0.8, nesterov, factor)
    np.testing.assert_allclose(PROBLEM.run(algorithm, RATES), expected, rtol=0, atol=160 * eps)


def test_displacement_without_nesterov_is_heavy_ball_on_the_total_displacement(eps):
    """m = beta (xt_prev - xt) / eta + g: the momentum is where the mixed model went."""
    beta, eta, n = 0.8, 0.1, PROBLEM.agents
    weights = ring_weights(n)
    x = np.tile(PROBLEM.start, (n, 1))
    previous = x.copy()
    for _ in range(5):
        mixed = weights @ x
        g = np.array([PROBLEM.gradient(i, mixed[i]) for i in range(n)])
        x = mixed - eta * (beta * (previous - mixed) / eta + g)
        previous = mixed
    ours = PROBLEM.run(algorithms.make("qg-dsgdm", momentum=beta, weight_decay=0.0), [eta] * 5)
    np.testing.assert_allclose(ours[-1], x, rtol=0, atol=80 * eps)


def test_the_moving_average_factor_is_a_tenth_whatever_the_momentum(eps):
    method = algorithms.get("qg-dsgdm-n-ema")
    assert method.hyperparameters["ema_factor"] == 0.1
    ours = PROBLEM.run(algorithms.make(method.name, momentum=0.8, weight_decay=DECAY), RATES)
    np.testing.assert_allclose(ours, moving_average(0.8, True, 0.1), rtol=0, atol=160 * eps)


@pytest.mark.parametrize("name", ["qg-dsgdm-n", "qg-dsgdm-n-ema"])
def test_a_warm_up_that_starts_at_rate_zero_stays_finite(name):
    path = PROBLEM.run(algorithms.make(name), [0.0, 0.05, 0.1, 0.1])
    assert np.isfinite(path).all()
    np.testing.assert_allclose(path[0], np.tile(PROBLEM.start, (6, 1)), rtol=1e-5, atol=1e-6)
    assert np.abs(path[-1] - path[0]).max() > 0.01


@pytest.mark.parametrize("name", ["dsgdm-n", "qg-dsgdm-n", "qg-dsgdm-n-ema"])
def test_agents_with_one_loss_reach_its_minimum(name, float64):
    alike = Quadratics(agents=4, size=3, seed=2)
    alike.curvature[:] = alike.curvature[0]
    alike.minimum[:] = alike.minimum[0]
    end = alike.run(algorithms.make(name, weight_decay=0.0), [0.1] * 800)[-1]
    np.testing.assert_allclose(end, alike.minimum, rtol=0, atol=1e-9)
