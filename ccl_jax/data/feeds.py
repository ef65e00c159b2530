"""Feeds: how the samples of an epoch reach the training step.

A feed has an item for every step (what is moved to the device in that step) and turns it into a batch
inside the jitted step. A set that fits in memory lives on the device as a whole, and its items are
indices; with several processes (`ccl_jax.hosts`) it stays with the hosts, and items are the images of
their own agents. So they are in a stream (`streaming.Streaming`).
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax.data import batches, streaming
from ccl_jax.data.datasets import Dataset
from ccl_jax.data.partition import Partition

PyTree = Any
Batches = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images `[agents, batch, H, W, C]` uint8, labels `[agents, batch]` int32 and mask, bool."""


class Feed(Protocol):
    """What the training loop needs of a source of samples.

    Attributes:
      agents: Number of agents.
      steps: Steps of one epoch.
      constants: Arrays on the device that every step is given; they have no agents axis.
      item: Shapes of one item, `jax.ShapeDtypeStruct` leaves; all lead with the agents axis.
      here: The agents that the items of this process are for, an index into the agents axis.
      unreadable: Names of the images that had to be left out so far.
    """

    agents: int
    steps: int
    constants: PyTree
    item: PyTree
    here: slice | Sequence[int]
    unreadable: Collection[str]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PyTree]:
        """The items of an epoch from its step `start` on; the same for the same seed and epoch.

        They have the agents of `here` only.
        """
        ...

    def fetch(self, constants: PyTree, item: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Inside the step: images `[agents, batch, H, W, C]` uint8, labels and mask."""
        ...


class InMemory:
    """A whole training set on the device; items are indices into it.

    Args:
      dataset: The set.
      partition: Who holds which of its samples.
      batch_size: Samples an agent a step.
      seed: Seed of the order of samples.
    """

    def __init__(self, dataset: Dataset, partition: Partition, batch_size: int, seed: int) -> None:
        self.agents = partition.agents
        self.steps = batches.steps_per_epoch(partition, batch_size)
        self.constants = (jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels))
        self.item = jax.ShapeDtypeStruct((self.agents, batch_size), jnp.int32)
        self.here = slice(None)
        self.unreadable = ()
        self._order = lambda epoch: batches.epoch_indices(partition, batch_size, epoch, seed)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """`[agents, batch]` int32 indices for each step; see `Feed.epoch`."""
        yield from self._order(epoch)[start:]

    def fetch(self, constants: PyTree, item: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Gathers by index; see `Feed.fetch`."""
        return batches.gather(*constants, item)


class OnHost:
    """A training set that stays with the hosts; items are the batches of the agents here.

    Args:
      dataset: The set.
      partition: Who holds which of its samples.
      batch_size: Samples an agent a step.
      seed: Seed of the order of samples.
      here: The agents of this process.
    """

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        batch_size: int,
        seed: int,
        here: Sequence[int],
    ) -> None:
        batch = (partition.agents, batch_size)
        self.agents = partition.agents
        self.steps = batches.steps_per_epoch(partition, batch_size)
        self.constants = ()
        self.item = (
            jax.ShapeDtypeStruct((*batch, *dataset.train_images.shape[1:]), jnp.uint8),
            jax.ShapeDtypeStruct(batch, jnp.int32),
            jax.ShapeDtypeStruct(batch, jnp.bool_),
        )
        self.here = here
        self.unreadable = ()
        self._images = np.asarray(dataset.train_images)
        self._labels = np.asarray(dataset.train_labels)
        self._order = lambda epoch: batches.epoch_indices(partition, batch_size, epoch, seed)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batches]:
        """Images, labels and mask for each step; see `Feed.epoch`."""
        for indices in self._order(epoch)[start:, self.here]:
            mask = indices != batches.PADDING
            shown = np.maximum(indices, 0)
            pixels = self._images[shown]
            if not mask.all():
                streaming.fill_gaps(pixels, mask)
            yield pixels, np.where(mask, self._labels[shown], 0), mask

    def fetch(self, constants: tuple, item: Batches) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The item is the batch already; see `Feed.fetch`."""
        del constants
        return item
