"""Gradient and update tracking: the mean of the trackers is what they track."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from tests.algorithms.quadratics import Quadratics


def test_trackers_have_the_mean_of_the_gradients(eps):
    quadratics = Quadratics(agents=5, size=3, seed=1)
    algorithm = algorithms.make("dsgt", momentum=0.5, weight_decay=0.0)
    a, c = (jnp.asarray(x, float) for x in (quadratics.curvature, quadratics.minimum))
    x = jnp.tile(jnp.asarray(quadratics.start, float), (5, 1))
    state = algorithm.init(x, quadratics.network.round(0))

    @jax.jit
    def step(x, state, t):
        talk = quadratics.network.round(t)
        own = lambda at, _: (jax.vmap(lambda x, a, c: a @ (x - c))(at, a, c), None)
        new = algorithms.advance(algorithm, x, state, talk, jnp.asarray(0.03, float), own)
        return new.params, new.state, new.grads

    for t in range(10):
        x, state, grads = step(x, state, jnp.int32(t))
        np.testing.assert_allclose(
            state.tracker.mean(axis=0), grads.mean(axis=0), rtol=0, atol=80 * eps
        )
        if t == 0:
            np.testing.assert_array_equal(state.tracker, grads)
        assert np.abs(state.tracker - grads).max() > 0.1 or t == 0


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_mean_of_update_tracking_takes_mean_steps(momentum, eps):
    # All agents have the same curvature, so the mean model sees the mean gradient.
    quadratics = Quadratics(agents=5, size=3, seed=2)
    quadratics.curvature[:] = quadratics.curvature[0]
    path = quadratics.run(
        algorithms.make("update-tracking", momentum=momentum, nesterov=False, weight_decay=0.0),
        [0.05] * 15,
    )
    x, m = quadratics.start, 0.0
    for agents in path:
        m = momentum * m + quadratics.curvature[0] @ (x - quadratics.minimum.mean(axis=0))
        x = x - 0.05 * m
        np.testing.assert_allclose(agents.mean(axis=0), x, rtol=0, atol=80 * eps)


@pytest.mark.parametrize("name", ["dsgt", "update-tracking", "momentum-tracking"])
def test_needs_doubly_stochastic_mixing(name):
    method = algorithms.get(name)
    method.check(graphs.make("star", 5, weights="metropolis"))
    with pytest.raises(ValueError, match="take metropolis weights or a regular graph"):
        method.check(graphs.make("star", 5))
