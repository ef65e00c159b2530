"""K-GT and ATC tracking: what the directions are, and what they are the same as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.network import Network
from tests.algorithms.quadratics import Quadratics, ring_weights

W = ring_weights(5)


def published(quadratics, steps, server, rates):
    """The recursion of the docstring in NumPy; one number of `rates` a round; models before each mix."""
    x = np.tile(quadratics.start, (5, 1))
    c, ends = np.zeros_like(x), []
    for eta in rates:
        y = x
        for _ in range(steps):
            gradients = np.stack([quadratics.gradient(i, y[i]) for i in range(5)])
            y = y - eta * (gradients + 0.01 * y + c)
            ends.append(y)
        z = (x - y) / (steps * eta)
        x, c = W @ (x - server * (x - y)), c - z + W @ z
    return np.stack(ends)


@pytest.mark.parametrize("steps, server", [(1, 0.7), (4, 1.0), (4, 0.6)])
def test_is_the_published_recursion(steps, server, eps):
    quadratics = Quadratics(agents=5, size=3, seed=4)
    quadratics.network = Network(graphs.make("ring", 5), local_steps=steps)
    algorithm = algorithms.make("k-gt", server_step_size=server, weight_decay=0.01)
    # The rate drops between rounds: then the published z is still the mean direction of a round.
    rates = [0.05] * 4 + [0.01] * 4
    path = quadratics.run(algorithm, np.repeat(rates, steps).tolist())
    wanted = published(quadratics, steps, server, rates)
    np.testing.assert_allclose(path, wanted, rtol=0, atol=200 * eps)


def test_with_one_step_it_is_atc_tracking_and_update_tracking(eps):
    quadratics = Quadratics(agents=5, size=3, seed=4)
    path = quadratics.run(algorithms.make("k-gt"), [0.05] * 12)
    np.testing.assert_array_equal(quadratics.run(algorithms.make("atc-gt"), [0.05] * 12), path)
    updates = quadratics.run(algorithms.make("update-tracking", momentum=0.0), [0.05] * 12)
    np.testing.assert_allclose(updates, path, rtol=0, atol=200 * eps)


def test_corrections_sum_to_zero_and_change_at_exchanges_only(eps):
    quadratics = Quadratics(agents=5, size=3, seed=1)
    network = Network(graphs.make("ring", 5), local_steps=3)
    algorithm = algorithms.make("k-gt", server_step_size=0.8)
    a, c = (jnp.asarray(x, float) for x in (quadratics.curvature, quadratics.minimum))
    x = jnp.tile(jnp.asarray(quadratics.start, float), (5, 1))
    state = algorithm.init(x, network.round(0))

    @jax.jit
    def step(x, state, t):
        own = lambda at, _: (jax.vmap(lambda x, a, c: a @ (x - c))(at, a, c), None)
        lr = jnp.asarray(0.05, float)
        new = algorithms.advance(algorithm, x, state, network.round(t), lr, own)
        return new.params, new.state

    for t in range(12):
        before = state.correction
        x, state = step(x, state, jnp.int32(t))
        np.testing.assert_allclose(state.correction.sum(axis=0), 0, rtol=0, atol=100 * eps)
        np.testing.assert_array_equal(state.steps, np.full(5, t % 3 + 1))
        if t % 3 or t == 0:
            np.testing.assert_array_equal(state.correction, before)
        else:
            assert np.abs(state.correction - before).max() > 0.01
