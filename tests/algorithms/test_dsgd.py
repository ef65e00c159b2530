"""DSGD, DSGDm and DSGDm-N against MATHS.md's recursion as plain loops, on heterogeneous quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms
from tests.algorithms.quadratics import Quadratics, ring_weights

PROBLEM = Quadratics(agents=5, size=3, seed=0)
RATES = [0.1, 0.1, 0.1, 0.02, 0.02]


def recursion(beta, nesterov, decay, gamma):
    """`[steps, agents, size]`: mix, gradient at the mixed point, local momentum, step."""
    n, weights = PROBLEM.agents, ring_weights(PROBLEM.agents)
    x = [PROBLEM.start.copy() for _ in range(n)]
    m = [np.zeros(PROBLEM.size) for _ in range(n)]
    path = []
    for eta in RATES:
        mixed = [
            x[i] + gamma * sum(weights[i, j] * (x[j] - x[i]) for j in range(n)) for i in range(n)
        ]
        for i in range(n):
            u = PROBLEM.gradient(i, mixed[i]) + decay * mixed[i]
            m[i] = beta * m[i] + u
            d = u + beta * m[i] if nesterov else m[i]
            x[i] = mixed[i] - eta * d
        path.append(np.array(x))
    return np.array(path)


@pytest.mark.parametrize("gamma", [1.0, 0.7])
@pytest.mark.parametrize(
    "name, beta, nesterov", [("dsgd", 0.0, False), ("dsgdm", 0.8, False), ("dsgdm-n", 0.9, True)]
)
def test_follows_the_recursion(name, beta, nesterov, gamma, eps):
    momentum = {} if name == "dsgd" else {"momentum": beta}
    algorithm = algorithms.make(name, weight_decay=0.05, gossip_rate=gamma, **momentum)
    expected = recursion(beta, nesterov, 0.05, gamma)
    np.testing.assert_allclose(PROBLEM.run(algorithm, RATES), expected, rtol=0, atol=80 * eps)


def test_with_gossip_rate_one_it_is_adapt_then_combine_half_a_step_later(eps):
    """EPFL's order: gradient at x, local step, then mix: its x is our mixed point."""
    n, weights, beta = PROBLEM.agents, ring_weights(PROBLEM.agents), 0.9
    x = np.tile(PROBLEM.start, (n, 1))
    m = np.zeros_like(x)
    for eta in RATES:
        u = np.array([PROBLEM.gradient(i, x[i]) for i in range(n)])
        m = beta * m + u
        half = x - eta * (u + beta * m)
        x = weights @ half
    ours = PROBLEM.run(algorithms.make("dsgdm-n", momentum=beta, weight_decay=0.0), RATES)
    np.testing.assert_allclose(ours[-1], half, rtol=0, atol=80 * eps)


@pytest.mark.parametrize("restart", [False, True])
def test_momentum_may_begin_anew_at_every_exchange(restart, eps):
    """As of clients that get a new optimizer with the mixed model: an exchange in every third step."""
    problem = Quadratics(agents=5, size=3, seed=0, local_steps=3)
    weights, beta = ring_weights(5), 0.9
    x, path = np.tile(problem.start, (5, 1)), []
    m = np.zeros_like(x)
    for t in range(7):
        if t % 3 == 0:
            x = weights @ x
            m = 0 * m if restart else m
        m = beta * m + np.array([problem.gradient(i, x[i]) for i in range(5)])
        x = x - 0.05 * m
        path.append(x)
    settings = {"momentum": beta, "weight_decay": 0.0, "restart_momentum": restart}
    ours = problem.run(algorithms.make("dsgdm", **settings), [0.05] * 7)
    np.testing.assert_allclose(ours, path, rtol=0, atol=80 * eps)


def test_defaults_are_the_published_ones():
    published = algorithms.make("dsgdm-n", momentum=0.9, weight_decay=1e-4, gossip_rate=1.0)
    ours = PROBLEM.run(algorithms.make("dsgdm-n"), RATES)
    np.testing.assert_array_equal(ours, PROBLEM.run(published, RATES))


def test_momentum_is_of_the_parameters_type():
    algorithm = algorithms.make("dsgdm-n")
    params = {"w": jnp.ones((5, 3), jnp.bfloat16)}
    network = PROBLEM.network.round(0)
    state = algorithm.init(params, network)
    own = lambda eval_params, _: (eval_params, None)
    new = algorithms.advance(algorithm, params, state, network, jnp.float32(0.1), own)
    leaves = jax.tree.leaves((new.params, new.state))
    assert {x.dtype for x in leaves} == {jnp.dtype(jnp.bfloat16)}
