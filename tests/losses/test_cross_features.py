"""The two contrastive losses against plain loops, numbers by hand, and numerical derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ccl_jax.losses import DISTANCES, class_sums, cross_features, masked_mean

MASK = np.array([True, True, True, False])
LABELS = np.array([0, 2, 0, 1], np.int32)


def features(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_model_variant_loss_is_a_sum_over_neighbours_of_means():
    own = jnp.array([[1.0, 1.0], [0.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    zero, padding = jnp.zeros((4, 2)), jnp.full((4, 2), 1e3)
    z = jnp.stack([zero, own, padding])
    mask = jnp.array([True, True, False])
    loss = cross_features.model_variant_loss(own, z, mask, jnp.asarray(MASK))
    # Only the first neighbour differs: (1 + 1 + 0 + 0 + 4 + 0) / 6.
    np.testing.assert_allclose(loss, 1.0, rtol=2.4e-7)  # four roundings to float32's 2^-24


def test_data_variant_loss_by_hand():
    own = jnp.array([[1.0], [4.0], [3.0], [50.0]])
    sums, counts = jnp.array([[2.0], [7.0], [0.0]]), jnp.array([2.0, 5.0, 0.0])
    loss = cross_features.data_variant_loss(
        own, jnp.asarray(LABELS), sums, counts, jnp.asarray(MASK)
    )
    # Class 0: mean of 1, 3 and neighbours' two worth 2 in sum = 6/4; class 2: own 4 only.
    expected = ((1 - 1.5) ** 2 + 0 + (3 - 1.5) ** 2) / 3
    np.testing.assert_allclose(loss, expected, rtol=2.4e-7)  # likewise


@pytest.mark.parametrize("name", ["mse", "huber", "cosine"])
def test_gradients_of_both_losses_numerically(name):
    z, sums = features(1, 2, 4, 6), features(2, 3, 6)
    neighbor_mask, mask = jnp.array([True, False]), jnp.asarray(MASK)

    def model_variant(x):
        return cross_features.model_variant_loss(x, z, neighbor_mask, mask, DISTANCES[name])

    check_grads(model_variant, (features(0, 4, 6),), order=1, modes=["rev"], rtol=2e-2, atol=1e-3)

    # The class means hold the own features detached, so the derivative is that at a fixed target.
    own, counts = features(0, 4, 6), jnp.array([1.0, 0.0, 2.0])
    own_sums, own_counts = class_sums(own, jnp.asarray(LABELS), mask, 3)
    target = ((own_sums + sums) / jnp.maximum(own_counts + counts, 1)[:, None])[LABELS]

    def fixed(x):
        return masked_mean(DISTANCES[name](x, target), mask)

    check_grads(fixed, (own,), order=1, modes=["rev"], rtol=2e-2, atol=1e-3)
    gradient = jax.grad(cross_features.data_variant_loss)(
        own, jnp.asarray(LABELS), sums, counts, mask, DISTANCES[name]
    )
    np.testing.assert_allclose(gradient, jax.grad(fixed)(own), rtol=1e-5, atol=1e-7)
    assert (gradient[3] == 0).all()  # padding


def test_no_gradient_flows_through_cross_features():
    mask, neighbor_mask = jnp.asarray(MASK), jnp.array([True, True])
    through = jax.grad(cross_features.model_variant_loss, argnums=1)(
        features(0, 4, 6), features(1, 2, 4, 6), neighbor_mask, mask
    )
    assert (through == 0).all()
    through = jax.grad(cross_features.data_variant_loss, argnums=2)(
        features(0, 4, 6), jnp.asarray(LABELS), features(2, 3, 6), jnp.ones(3), mask
    )
    assert (through == 0).all()


def test_class_means_of_an_unseen_class_are_never_used():
    # Class 1 is nobody's: its mean is 0, and no sample of the batch has that label.
    own = features(0, 2, 3)
    loss = cross_features.data_variant_loss(
        own, jnp.array([0, 2]), jnp.zeros((3, 3)), jnp.zeros(3), jnp.array([True, True])
    )
    np.testing.assert_allclose(loss, 0.0, atol=1e-12)


def test_an_empty_batch_has_loss_zero_and_gradient_zero():
    none = jnp.zeros(4, bool)
    loss, gradient = jax.value_and_grad(cross_features.model_variant_loss)(
        features(0, 4, 6), features(1, 2, 4, 6), jnp.array([True, True]), none
    )
    assert loss == 0
    assert (gradient == 0).all()
