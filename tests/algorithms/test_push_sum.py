"""Push-sum: unbiased on directed graphs on which plain gossip is not."""

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import algorithms, graphs, training
from ccl_jax.graphs import topology
from ccl_jax.network import Network
from ccl_jax.network.compression import SIGN
from tests.support.tiny import CLASSES, IMAGE, TinyModel, batch

# Everyone sends to the next agent and agent 0 hears more than it says: columns sum to 1, rows do not.
SENDS = np.eye(5) + np.roll(np.eye(5), 1, axis=0)
SENDS[0, 2:] = 1
PUSH = SENDS / SENDS.sum(axis=0)


def test_frozen_models_reach_the_plain_mean(eps):
    network = Network(topology.from_matrix("push", PUSH, stochastic="column"))
    algorithm = algorithms.make("sgp")
    x = first = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), float)
    state = algorithm.init(x, network.round(0))

    @jax.jit
    def push(x, state, t):
        talk = network.round(t)
        own = lambda z, _: (jnp.zeros_like(x), z)
        new = algorithms.advance(algorithm, x, state, talk, 0.0, own)
        return new.aux, new.params, new.state

    for t in range(150):
        z, x, state = push(x, state, jnp.int32(t))
    np.testing.assert_allclose(z, np.tile(first.mean(axis=0), (5, 1)), rtol=0, atol=80 * eps)
    np.testing.assert_allclose(state.weight.sum(), 5, rtol=80 * eps)
    assert np.ptp(state.weight) > 0.5  # so that x itself is biased
    np.testing.assert_allclose(x.sum(axis=0), first.sum(axis=0), rtol=0, atol=160 * eps)
    np.testing.assert_allclose(algorithm.models(x, state), z, rtol=0, atol=80 * eps)


def test_one_step_by_hand():
    # Two agents: 0 keeps all, 1 gives half of it away.
    push = np.array([[1.0, 0.5], [0.0, 0.5]])
    network = Network(topology.from_matrix("push", push, stochastic="column"))
    algorithm = algorithms.make("sgp", momentum=0.0, nesterov=False, weight_decay=0.1)
    x = jnp.array([[2.0], [4.0]])
    state = algorithm.init(x, network.round(0))
    z, state, _ = algorithm.communicate(x, state, network.round(0), 0.5)
    np.testing.assert_allclose(state.weight, [1.5, 0.5])
    np.testing.assert_allclose(z[:, 0], [4 / 1.5, 4.0], rtol=1e-6)
    x, _ = algorithm.update(jnp.array([[1.0], [2.0]]), z, state, network.round(0), 0.5)
    # The decay acts on the numerators 4 and 2: 4 - 0.5 (1 + 0.4) and 2 - 0.5 (2 + 0.2).
    np.testing.assert_allclose(x[:, 0], [3.3, 0.9], rtol=1e-6)


def test_on_a_ring_it_is_dsgd_in_what_neighbours_know_too():
    """Weights stay 1, so that models are what was sent, compressed: cross-features see the same."""
    objective = training.Objective(CLASSES, lambda_m=1.0)
    ends, losses = [], []
    for name in ("sgp", "dsgdm-n"):
        stochastic = algorithms.get(name).stochastic
        network = Network(graphs.make("ring", 4, stochastic=stochastic), compressor=SIGN)
        algorithm = algorithms.make(name)
        state = training.init_state(
            TinyModel(), algorithm, network, objective, IMAGE, jax.random.key(0)
        )
        step = jax.jit(
            training.make_step(TinyModel(), algorithm, network, objective, lambda t: 0.1)
        )
        path = []
        for t in range(8):
            state, metrics = step(state, batch(4, seed=t))
            path.append(metrics.losses["model_variant"])
        ends.append(state.params)
        losses.append(np.stack(path))
    np.testing.assert_allclose(*losses, rtol=1e-5, atol=1e-8)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), *ends)
    assert (losses[0][1:] > 1e-4).all()


def test_a_copy_that_starts_at_zero_is_the_zero_model():
    """Of its weight, too, neighbours know nothing yet: 0 / 0 would be NaN in every cross-feature."""
    graph = graphs.make("exponential", 5, stochastic="column")
    network = Network(graph, compressor=SIGN, compression_start="zero")
    algorithm = algorithms.make("sgp")
    x = jnp.arange(10.0).reshape(5, 2)
    state, talk = algorithm.init(x, network.round(0)), network.round(0)
    z, _, models = algorithm.communicate(x, state, talk, 0.1)
    np.testing.assert_array_equal(z, x)
    np.testing.assert_array_equal(models.known, jnp.zeros_like(x))
    np.testing.assert_array_equal(models.own, x)
