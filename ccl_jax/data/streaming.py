"""Streams: images that are decoded while training runs, for sets too large to be held in memory.

Grain (github.com/google/grain) reads and decodes ahead of the step, in threads, and gives the images
in the order they were asked for; so an order depends on (seed, epoch, agent) only, and any step of an
epoch can be the first. An image that cannot be read is left out and counted, up to a limit.
"""

import threading
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax.data import batches, images
from ccl_jax.data.dataset import ImageStore, StreamedDataset
from ccl_jax.data.partition import Partition

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images `[..., batch, side, side, 3]` uint8, labels `[..., batch]` int32, mask `[..., batch]` bool."""


class Skipped:
    """The images of a run that could not be read.

    Args:
      limit: How many there may be.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.names: set[str] = set()
        self._lock = threading.Lock()

    def add(self, name: str, error: Exception) -> None:
        """Counts an image, once however often it is met.

        Raises:
          ValueError: It is one too many; the message names it.
        """
        with self._lock:
            self.names.add(name)
            if len(self.names) > self.limit:
                raise ValueError(
                    f"{name}: {error}; it is image number {len(self.names)} that cannot be read, "
                    f"max_unreadable is {self.limit}: mend or remove it, or raise max_unreadable."
                )


def decode_ahead(
    store: ImageStore,
    indices: np.ndarray,
    side: int,
    skipped: Skipped,
    *,
    workers: int = 16,
) -> Iterator[Chunk]:
    """Reads and decodes images by index, ahead of their use and in order.

    Args:
      store: Where they are.
      indices: `[chunks, ...]` int positions in the store, `batches.PADDING` where there is none.
      side: Height and width in pixels to bring them to.
      skipped: Takes those that cannot be read.
      workers: Threads, at least 1.

    Yields:
      For each chunk its images, labels and mask, `[...]`; all 0 and False at padding and at images
      that cannot be read.

    Raises:
      ValueError: Too many images cannot be read.
    """
    import grain  # Takes seconds to import, and only streams need it.

    shape = indices.shape[1:]
    nothing = (np.zeros((side, side, 3), np.uint8), np.int32(0), np.bool_(False))

    def fetch(index: np.int64) -> tuple[np.ndarray, np.int32, np.bool_]:
        if index == batches.PADDING:
            return nothing
        try:
            pixels = images.decode(store.read(index), side)
        except (OSError, ValueError) as error:
            skipped.add(store.name(index), error)
            return nothing
        return pixels, store.labels[index], np.bool_(True)

    size = int(np.prod(shape))
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * size)
    source = grain.MapDataset.source(indices.reshape(-1))
    for chunk in source.map(fetch).to_iter_dataset(options).batch(size):
        yield tuple(part.reshape(*shape, *part.shape[1:]) for part in chunk)


class Streaming:
    """A feed whose items are the decoded images themselves; see `feeds.Feed`.

    Args:
      dataset: The set.
      partition: Who holds which of its training images.
      batch_size: Images an agent a step.
      seed: Seed of the order of images.
      workers: Threads that decode.
      max_unreadable: Images that may be unreadable, over the whole run.
      here: The agents of this process, whose images alone are decoded; None for all.
    """

    def __init__(
        self,
        dataset: StreamedDataset,
        partition: Partition,
        batch_size: int,
        seed: int,
        *,
        workers: int = 16,
        max_unreadable: int = 10,
        here: Sequence[int] | None = None,
    ) -> None:
        side = dataset.stored_side
        batch = (partition.agents, batch_size)
        self.agents = partition.agents
        self.steps = batches.steps_per_epoch(partition, batch_size)
        self.constants = ()
        self.item = (
            jax.ShapeDtypeStruct((*batch, side, side, 3), jnp.uint8),
            jax.ShapeDtypeStruct(batch, jnp.int32),
            jax.ShapeDtypeStruct(batch, jnp.bool_),
        )
        self.here = slice(None) if here is None else here
        skipped = Skipped(max_unreadable)
        self.unreadable = skipped.names
        self._order = lambda epoch: batches.epoch_indices(partition, batch_size, epoch, seed)
        self._decode = lambda indices: decode_ahead(
            dataset.train, indices, side, skipped, workers=workers
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Chunk]:
        """Images, labels and mask for each step; see `Feed.epoch`."""
        for pixels, labels, mask in self._decode(self._order(epoch)[start:, self.here]):
            if not mask.all():
                fill_gaps(pixels, mask)
            yield pixels, labels, mask

    def fetch(self, constants: tuple, item: Chunk) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The item is the batch already; see `Feed.fetch`."""
        del constants
        return item


def fill_gaps(pixels: np.ndarray, mask: np.ndarray) -> None:
    """Shows a batch's own images again where there are none, in place, as `batches.gather` does.

    Batch statistics are then those of real images. A batch without any image stays black.

    Args:
      pixels: `[agents, batch, H, W, C]`.
      mask: `[agents, batch]` bool.
    """
    for own, there in zip(pixels, mask, strict=True):
        held, gaps = np.flatnonzero(there), np.flatnonzero(~there)
        if len(held):
            own[gaps] = own[held[np.arange(len(gaps)) % len(held)]]
