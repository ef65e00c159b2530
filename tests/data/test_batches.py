"""Batches: every sample once an epoch, in a reproducible order, and padding that is masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccl_jax.data import batches
from ccl_jax.data.partition import Partition


def make_partition(sizes):
    order = np.random.default_rng(0).permutation(sum(sizes)).astype(np.int32)
    return Partition("test", tuple(np.split(order, np.cumsum(sizes)[:-1])))


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    epoch=st.integers(0, 1000),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_every_sample_once(sizes, epoch, seed, data):
    batch_size = data.draw(st.integers(1, min(sizes)))
    split = make_partition(sizes)
    indices = batches.epoch_indices(split, batch_size, epoch, seed)
    steps = -(-max(sizes) // batch_size)
    assert indices.shape == (steps, len(sizes), batch_size) and indices.dtype == np.int32
    assert batches.steps_per_epoch(split, batch_size) == steps
    for agent, held in enumerate(split.indices):
        row = indices[:, agent].ravel()
        assert sorted(row[: len(held)].tolist()) == sorted(held.tolist())
        assert np.all(row[len(held) :] == -1)


def test_order_depends_on_seed_epoch_and_agent_only():
    split = make_partition([20, 30, 25])
    indices = batches.epoch_indices(split, 5, epoch=3, seed=7)
    np.testing.assert_array_equal(indices, batches.epoch_indices(split, 5, epoch=3, seed=7))
    # Neither the other agents nor the batch size play a part.
    alone = Partition("alone", split.indices[:1])
    np.testing.assert_array_equal(
        batches.epoch_indices(alone, 20, 3, 7).ravel(), indices[:4, 0].ravel()
    )
    for other in (dict(epoch=4, seed=7), dict(epoch=3, seed=8)):
        assert not np.array_equal(indices, batches.epoch_indices(split, 5, **other))
    # Two agents with equal samples would see them in different orders.
    same = Partition("same", (np.arange(50), np.arange(50, 100)))
    first, second = batches.epoch_indices(same, 50, 0, 0)[0]
    assert not np.array_equal(first, second - 50)


def test_shuffles_are_uniform():
    split = Partition("one", (np.arange(4),))
    firsts = [batches.epoch_indices(split, 4, epoch, 0)[0, 0, 0] for epoch in range(400)]
    # 100 expected of each; the standard deviation is sqrt(400 * 1/4 * 3/4) = 8.7.
    assert np.all(np.abs(np.bincount(firsts, minlength=4) - 100) < 40)


def test_bad_batch_sizes():
    split = make_partition([20, 3, 50])
    with pytest.raises(ValueError, match=r"8 is larger than the shard of agent 1, which holds 3"):
        batches.epoch_indices(split, 8, 0, 0)
    with pytest.raises(ValueError, match=r"agent 2 holds 50.*at most 3"):
        batches.steps_per_epoch(split, 8)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        batches.steps_per_epoch(split, 0)


def test_gather_with_padding():
    images = jnp.arange(5 * 2 * 2 * 3, dtype=jnp.uint8).reshape(5, 2, 2, 3) + jnp.uint8(1)
    labels = jnp.array([5, 6, 7, 8, 9], jnp.int32)
    indices = jnp.array([[4, 0, -1], [2, -1, -1]], jnp.int32)
    x, y, mask = jax.jit(batches.gather)(images, labels, indices)
    assert (x.dtype, y.dtype, mask.dtype) == (jnp.uint8, jnp.int32, jnp.bool_)
    np.testing.assert_array_equal(y, [[9, 5, 0], [7, 0, 0]])
    np.testing.assert_array_equal(mask, [[True, True, False], [True, False, False]])
    # Padding shows the batch's own samples once more.
    shown = [[4, 0, 4], [2, 2, 2]]
    np.testing.assert_array_equal(x, images[jnp.array(shown)])


def test_an_epoch_gathers_every_label_once():
    split = make_partition([9, 14, 11])
    labels = jnp.arange(34, dtype=jnp.int32)
    images = jnp.zeros((34, 1, 1, 1), jnp.uint8)
    indices = batches.epoch_indices(split, 4, 0, 0)
    _, y, mask = batches.gather(images, labels, jnp.asarray(indices))
    assert sorted(np.asarray(y)[np.asarray(mask)].tolist()) == list(range(34))
