"""Streams: images that are decoded while training runs, for sets too large to be held in memory.

Grain (github.com/google/grain) reads and decodes ahead of the step, in threads, and gives the images
in the order they were asked for; so an order depends on (seed, epoch, agent) only, and any step of an
epoch can be the first. An image that cannot be read is left out and counted, up to a limit.
"""

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from ccl_jax.data import batches, feeds, images
from ccl_jax.data.base import ImageStore, StreamedDataset
from ccl_jax.data.partition import Partition


class Skipped:
    """The images of a run that could not be read.

    Args:
      limit: How many there may be.

    Attributes:
      indices: Their positions in the store.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.indices: set[int] = set()
        self._lock = threading.Lock()

    def add(self, index: int, name: str, error: Exception) -> None:
        """Counts an image, once however often it is met.

        Raises:
          ValueError: It is one too many; the message names it.
        """
        with self._lock:
            self.indices.add(index)
            if len(self.indices) > self.limit:
                raise ValueError(
                    f"{name}: {error}; it is image number {len(self.indices)} that cannot be read, "
                    f"max_unreadable is {self.limit}: mend or remove it, or raise max_unreadable."
                )


def decode_ahead(
    store: ImageStore,
    indices: np.ndarray,
    side: int,
    skipped: Skipped,
    *,
    workers: int = 16,
) -> Iterator[feeds.Batches]:
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
            skipped.add(int(index), store.name(index), error)
            return nothing
        return pixels, store.labels[index], np.bool_(True)

    size = int(np.prod(shape))
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * size)
    source = grain.MapDataset.source(indices.reshape(-1))
    for chunk in source.map(fetch).to_iter_dataset(options).batch(size):
        yield tuple(part.reshape(*shape, *part.shape[1:]) for part in chunk)


class Streaming(feeds.Decoded):
    """A feed whose items are the decoded images themselves; see `feeds.Feed`.

    Args:
      dataset: The set.
      partition: Who holds which of its training images.
      batch_size: Images per agent and step.
      seed: Seed of the order of images.
      workers: Threads that decode.
      max_unreadable: Images that may be unreadable, over the whole run (of other processes known at the
        end of each epoch).
      here: The agents of this process, whose images alone are decoded; default: all.
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
        here: slice | Sequence[int] = slice(None),
    ) -> None:
        side, skipped = dataset.stored_side, Skipped(max_unreadable)
        decode = lambda order: decode_ahead(dataset.train, order, side, skipped, workers=workers)
        super().__init__((side, side, 3), decode, partition, batch_size, seed, here)
        self.unreadable = skipped.indices
