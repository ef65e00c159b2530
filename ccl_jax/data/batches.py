"""Batches: in which order agents see their samples, and how a step fetches them.

The order is made on the host, one epoch at a time, as a table of indices. The images themselves
stay on the device as uint8 and are gathered by index inside the jitted step.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax.data.partition import Partition
from ccl_jax.randomness import Stream, generator

PADDING = -1
"""The index that stands for no sample."""


def steps_per_epoch(partition: Partition, batch_size: int) -> int:
    """Steps until the agent with the most samples has seen all of them.

    Args:
      partition: Who holds which samples.
      batch_size: Samples per agent and step, 1 to the size of the smallest shard.

    Returns:
      max over agents of ceil(n_i / batch_size).

    Raises:
      ValueError: The batch size is out of range; the error names the agent with the smallest shard.
    """
    sizes = partition.sizes
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    if batch_size > sizes.min():
        raise ValueError(
            f"batch_size {batch_size} is larger than the shard of agent {sizes.argmin()}, which "
            f"holds {sizes.min()} samples (agent {sizes.argmax()} holds {sizes.max()}): take a "
            f"batch_size of at most {sizes.min()}, fewer agents or a less heterogeneous split."
        )
    return -(-int(sizes.max()) // batch_size)


def epoch_indices(partition: Partition, batch_size: int, epoch: int, seed: int) -> np.ndarray:
    """The order of samples in one epoch: every sample of every agent exactly once.

    Each agent's order is a shuffle of its own that depends on (seed, epoch, agent) only. Agents
    with fewer samples than the largest end the epoch with padding.

    Args:
      partition: Who holds which samples.
      batch_size: Samples per agent and step, 1 to the size of the smallest shard.
      epoch: 0 or more.
      seed: 0 to 2**32 - 1.

    Returns:
      `[steps, agents, batch_size]` int32 positions in the training set, `PADDING` where there
      is none.

    Raises:
      ValueError: The batch size or the seed is out of range.
    """
    steps = steps_per_epoch(partition, batch_size)
    table = np.full((partition.agents, steps * batch_size), PADDING, np.int32)
    for agent, held in enumerate(partition.indices):
        table[agent, : len(held)] = generator(Stream.BATCHES, seed, epoch, agent).permutation(held)
    return table.reshape(partition.agents, steps, batch_size).swapaxes(0, 1)


def gather(
    images: jax.Array, labels: jax.Array, indices: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fetches samples by index, inside the jitted step.

    Args:
      images: `[n, H, W, C]` uint8, the whole training set.
      labels: `[n]` int32.
      indices: `[..., batch]` int32, `PADDING` where there is no sample.

    Returns:
      images `[..., batch, H, W, C]` uint8, at padding the batch's own once more; labels
      `[..., batch]` int32, 0 at padding; mask `[..., batch]` bool, False at padding.
    """
    mask = indices != PADDING
    # Padding shows the batch's own samples again (they stand first), so that batch statistics are
    # those of real images; an empty batch shows sample 0.
    held = mask.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    place = jax.lax.broadcasted_iota(jnp.int32, indices.shape, indices.ndim - 1)
    again = place % jnp.maximum(held, 1)
    shown = jnp.maximum(jnp.take_along_axis(indices, again, axis=-1), 0)
    return images[shown], jnp.where(mask, labels[shown], 0), mask


def fill_gaps(pixels: np.ndarray, mask: np.ndarray) -> None:
    """Shows a batch's own images again where there are none, in place, as `gather` does.

    Batch statistics are then those of real images. A batch without any image stays black.

    Args:
      pixels: `[agents, batch, H, W, C]`.
      mask: `[agents, batch]` bool.
    """
    for own, there in zip(pixels, mask, strict=True):
        held, gaps = np.flatnonzero(there), np.flatnonzero(~there)
        if len(held):
            own[gaps] = own[held[np.arange(len(gaps)) % len(held)]]
