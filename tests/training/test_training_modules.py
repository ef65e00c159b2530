"""A user's own flax module in the training step, batch statistics that are mixed, and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ccl_jax import algorithms, graphs, training
from ccl_jax.network import Network
from ccl_jax.training import Objective
from tests.support.tiny import CLASSES, IMAGE, batch, spread

AGENTS = 4


class OwnNetwork(nn.Module):
    """What a user may bring: any module that returns (features, logits), here with batch norm."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        x = nn.Dense(6, dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x.astype(jnp.float32))
        features = nn.tanh(x)
        return features, nn.Dense(CLASSES)(features)


def build(model=None, name="qg-dsgdm-n", objective=None, **options):
    algorithm = algorithms.make(name)
    network = Network(graphs.make("ring", AGENTS, stochastic=algorithms.get(name).stochastic))
    objective = objective or Objective(CLASSES, 0.1, 0.1)
    model = model or OwnNetwork()
    step = training.make_step(model, algorithm, network, objective, lambda t: 0.1, **options)
    state = training.init_state(
        model, algorithm, network, objective, IMAGE, jax.random.key(0), **options
    )
    stats = spread(state.model_state, scale=0.1, seed=3)
    return jax.jit(step), state._replace(params=spread(state.params), model_state=stats)


def test_own_module_learns_and_keeps_its_statistics():
    step, state = build()
    before = jax.tree.map(np.asarray, state.model_state)
    first, losses = None, []
    for _ in range(40):
        state, metrics = step(state, batch(AGENTS))
        losses.append(float(metrics.cross_entropy.mean()))
        first = first or jax.tree.map(np.asarray, state.model_state)
    assert losses[-1] < 0.5 * losses[0] and np.isfinite(losses).all()
    # Each agent's running mean goes a tenth of the way from where its own was.
    mean = before["batch_stats"]["BatchNorm_0"]["mean"]
    moved = first["batch_stats"]["BatchNorm_0"]["mean"] - 0.9 * mean
    assert np.ptp(moved, axis=0).max() > 1e-3
    assert "batch_stats" in state.model_state


def test_gossiped_statistics_are_mixed_before_they_are_updated():
    plain, state = build()
    mixing, _ = build(gossip_batch_stats=True)
    data = batch(AGENTS)
    alone, plain_metrics = plain(state, data)
    mixed, metrics = mixing(state, data)
    # Training mode does not read the running statistics, so that nothing else changes.
    jax.tree.map(np.testing.assert_array_equal, alone.params, mixed.params)
    weights = np.zeros((AGENTS, AGENTS))
    for i in range(AGENTS):
        weights[i, [i - 1, i, (i + 1) % AGENTS]] = 1 / 3

    def check(old, kept, gossiped):
        expected = kept + 0.9 * (weights @ np.asarray(old, np.float64) - old)
        np.testing.assert_allclose(gossiped, expected, rtol=1e-5, atol=1e-6)

    jax.tree.map(check, state.model_state, alone.model_state, mixed.model_state)
    # Neighbours need the statistics for cross-features anyway: they are sent once, not twice.
    np.testing.assert_array_equal(metrics.traffic.bytes_sent(), plain_metrics.traffic.bytes_sent())


def test_measuring_leaves_the_traffic_of_cross_gradients_alone():
    """They take neighbours' models with their statistics, which are sent for that."""
    plain, state = build(name="ngc", objective=Objective(CLASSES))
    measuring, _ = build(name="ngc", objective=Objective(CLASSES, measure=True))
    (_, expected), (_, found) = plain(state, batch(AGENTS)), measuring(state, batch(AGENTS))
    sizes = found.traffic.message_bytes[0].tolist()
    # Parameters, the running mean and variance of six features, and gradients in return.
    model = 4 * (9 * 6 + 6 + 2 * 6 + 6 * CLASSES + CLASSES)
    assert sizes == [model, 2 * 6 * 4, model]
    np.testing.assert_array_equal(found.traffic.bytes_sent(), expected.traffic.bytes_sent())


def test_statistics_cannot_be_mixed_by_push_sum():
    with pytest.raises(ValueError, match="gossip_batch_stats needs weights whose rows sum to 1"):
        build(name="sgp", gossip_batch_stats=True)


def test_bfloat16_network_has_float32_parameters_and_losses():
    step, state = build(OwnNetwork(dtype=jnp.bfloat16))
    reference, _ = build()
    state_after, metrics = step(state, batch(AGENTS))
    assert {x.dtype for x in jax.tree.leaves(state_after.params)} == {jnp.dtype("float32")}
    assert metrics.cross_entropy.dtype == jnp.float32
    _, exact = reference(state, batch(AGENTS))
    np.testing.assert_allclose(metrics.cross_entropy, exact.cross_entropy, rtol=0.05)
    assert not np.array_equal(metrics.cross_entropy, exact.cross_entropy)
