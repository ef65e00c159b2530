"""What the loaders of datasets share: what they are asked for, prepared sets, pixels and constants."""

import concurrent.futures
import dataclasses
import os
import pathlib

import numpy as np

from ccl_jax.data import images, tfds_sets
from ccl_jax.data.base import Dataset, ImageStore

Images = tuple[ImageStore, ImageStore, tuple[str, ...]]
"""Training images, test images and the names of the classes."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a loader is asked for; see the arguments of `datasets.load`."""

    name: str
    data_dir: pathlib.Path | None = None
    image_size: int | None = None
    verify_checksums: bool = False


def prepared(request: Request) -> Images | None:
    """What TFDS has prepared of this set in data_dir; None where there is nothing.

    Raises:
      ValueError: It is not whole, or checksums are wanted, which it does not have.
    """
    source = tfds_sets.SOURCES.get(request.name)
    if source is None or request.data_dir is None or not request.data_dir.is_dir():
        return None
    folder = tfds_sets.find(source, request.data_dir)
    if folder is None:
        return None
    if request.verify_checksums:
        raise ValueError(
            f"{folder}: sets that TFDS has prepared have no published checksums: leave "
            "verify_checksums out."
        )
    return tfds_sets.read(source, folder)


def in_memory(store: ImageStore, side: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All images of a store, decoded by threads, and their labels.

    Args:
      store: Where they are.
      side: As in `images.decode`; None where all have one size of their own.

    Returns:
      `[n, H, W, 3]` uint8 and `[n]` int32.

    Raises:
      ValueError: An image cannot be read, or is of another size than the first; the message names it.
    """

    def decode(index: int) -> np.ndarray:
        try:
            return images.decode(store.read(index), side)
        except (OSError, ValueError) as error:
            raise ValueError(f"{store.name(index)}: {error}: mend or remove it.") from error

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = list(pool.map(decode, range(len(store.labels))))
    for index, pixels in enumerate(decoded):
        if pixels.shape != decoded[0].shape:
            raise ValueError(
                f"{store.name(index)}: has the shape {pixels.shape}, others have "
                f"{decoded[0].shape}: it is of another set."
            )
    return np.stack(decoded), store.labels


def with_own_constants(dataset: Dataset) -> Dataset:
    """The dataset, normalised by the mean and std of its training pixels."""
    histograms = [
        np.bincount(dataset.train_images[..., c].ravel(), minlength=256)
        for c in range(dataset.image_shape[2])
    ]
    pixels = np.arange(256) / dataset.scale
    means = [float(np.average(pixels, weights=h)) for h in histograms]
    variances = [
        float(np.average((pixels - m) ** 2, weights=h))
        for m, h in zip(means, histograms, strict=True)
    ]
    # A channel of one colour has std 0 and carries nothing: any other divisor serves.
    stds = [variance**0.5 or 1.0 for variance in variances]
    return dataclasses.replace(dataset, mean=tuple(means), std=tuple(stds))
