"""Feeds: how the samples of an epoch reach the training step.

A feed has an item for every step (what is moved to the device in that step) and turns it into a batch
inside the jitted step. A set that fits in memory lives on the device as a whole, and its items are
indices; with several processes (`ccl_jax.devices.hosts`) it stays with the hosts, and items are the
images of their own agents. So they are in a stream (`streaming.Streaming`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax.data import batches
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
      unreadable: Positions in the training set of the images that had to be left out so far; a run that
        goes on adds those that it knew of.
    """

    agents: int
    steps: int
    constants: PyTree
    item: PyTree
    here: slice | Sequence[int]
    unreadable: set[int]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PyTree]:
        """The items of an epoch from its step `start` on; the same for the same seed and epoch.

        They have the agents of `here` only.
        """
        ...

    def fetch(self, constants: PyTree, item: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Inside the step: images `[agents, batch, H, W, C]` uint8, labels and mask."""
        ...


class Ordered:
    """What all feeds share: the order of samples.

    Args:
      partition: Who holds which samples.
      batch_size: Samples per agent and step.
      seed: Seed of the order of samples.
      here: The agents of this process; default: all.
    """

    def __init__(
        self,
        partition: Partition,
        batch_size: int,
        seed: int,
        here: slice | Sequence[int] = slice(None),
    ) -> None:
        self.agents = partition.agents
        self.steps = batches.steps_per_epoch(partition, batch_size)
        self.here = here
        self.unreadable: set[int] = set()
        self._order = lambda epoch: batches.epoch_indices(partition, batch_size, epoch, seed)

    def order(self, epoch: int, start: int = 0) -> np.ndarray:
        """`[steps, agents here, batch]` int32 indices of an epoch from its step `start` on."""
        return self._order(epoch)[start:, self.here]


class InMemory(Ordered):
    """A whole training set on the device; items are indices into it.

    Args:
      dataset: The set.
      partition: Who holds which of its samples.
      batch_size: Samples per agent and step.
      seed: Seed of the order of samples.
    """

    def __init__(self, dataset: Dataset, partition: Partition, batch_size: int, seed: int) -> None:
        super().__init__(partition, batch_size, seed)
        self.constants = (jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels))
        self.item = jax.ShapeDtypeStruct((self.agents, batch_size), jnp.int32)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """`[agents, batch]` int32 indices for each step; see `Feed.epoch`."""
        yield from self.order(epoch, start)

    def fetch(self, constants: PyTree, item: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Gathers by index; see `Feed.fetch`."""
        return batches.gather(*constants, item)


class Decoded(Ordered):
    """Items are the batches themselves, images and all.

    Args:
      image_shape: (H, W, C) of the images in the items.
      decode: Given `[steps, agents here, batch]` indices, yields the `Batches` of each step.
      partition: Who holds which samples.
      batch_size: Samples per agent and step.
      seed: Seed of the order of samples.
      here: The agents of this process; default: all.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        decode: Callable[[np.ndarray], Iterator[Batches]],
        partition: Partition,
        batch_size: int,
        seed: int,
        here: slice | Sequence[int] = slice(None),
    ) -> None:
        super().__init__(partition, batch_size, seed, here)
        batch = (self.agents, batch_size)
        self.constants = ()
        self.item = (
            jax.ShapeDtypeStruct((*batch, *image_shape), jnp.uint8),
            jax.ShapeDtypeStruct(batch, jnp.int32),
            jax.ShapeDtypeStruct(batch, jnp.bool_),
        )
        self._decode = decode

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batches]:
        """Images, labels and mask for each step; see `Feed.epoch`."""
        for pixels, labels, mask in self._decode(self.order(epoch, start)):
            if not mask.all():
                batches.fill_gaps(pixels, mask)
            yield pixels, labels, mask

    def fetch(self, constants: tuple, item: Batches) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The item is the batch already; see `Feed.fetch`."""
        del constants
        return item


class OnHost(Decoded):
    """A training set that stays with the hosts; items are the batches of the agents here.

    Args:
      dataset: The set.
      partition: Who holds which of its samples.
      batch_size: Samples per agent and step.
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
        images, labels = np.asarray(dataset.train_images), np.asarray(dataset.train_labels)

        def look_up(order: np.ndarray) -> Iterator[Batches]:
            for indices in order:
                mask = indices != batches.PADDING
                shown = np.maximum(indices, 0)
                yield images[shown], np.where(mask, labels[shown], 0), mask

        super().__init__(dataset.image_shape, look_up, partition, batch_size, seed, here)
