"""The IDX file format of MNIST and its relatives, plain or gzipped, read with every check.

An IDX file is a header - two zero bytes, a type code, the number of dimensions, and each dimension
as a big-endian unsigned 32-bit integer - followed by the values, last dimension fastest.
Described at the end of http://yann.lecun.com/exdb/mnist/.

Whether a file is gzipped is read from its first bytes, not from its name. A header is believed only
up to `MAX_BYTES`, and never more is read than it promises, so a damaged file cannot exhaust memory.
"""

import gzip
import math
import pathlib
import zlib
from typing import BinaryIO

import numpy as np

UNSIGNED_BYTE = 0x08
"""Type code of uint8, the only one that image sets use."""

MAX_BYTES = 2**30
"""Most bytes of values that are read, over 20 times the training images of Fashion-MNIST."""

_BLOCK_BYTES = 2**20
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: str | pathlib.Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    Args:
      path: The file, gzipped or not.
      shape: The expected dimensions; None where any size from 1 up is right.

    Returns:
      uint8 array of the shape that the header states.

    Raises:
      ValueError: The file cannot be read, is truncated or too long, fails its gzip checksum, or has
        another magic number, type or shape than expected. The message names the file.
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not zipped:
                return _parse(raw, path, shape)
            with gzip.GzipFile(fileobj=raw) as unzipped:
                return _parse(unzipped, path, shape)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}): download it again.") from error


def read_images_and_labels(
    images_path: str | pathlib.Path,
    labels_path: str | pathlib.Path,
    image_shape: tuple[int, int],
    num_classes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file of grey images and the file of their labels.

    Args:
      images_path: IDX file of `[n, H, W]` bytes.
      labels_path: IDX file of `[n]` bytes.
      image_shape: The expected (H, W).
      num_classes: Labels must be below this number.

    Returns:
      images uint8 `[n, H, W, 1]` and labels int32 `[n]`.

    Raises:
      ValueError: As `read_idx`; or the numbers of images and labels differ, or a label is too
        large.
    """
    images = read_idx(images_path, (None, *image_shape))
    labels = read_idx(labels_path, (None,))
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: holds {len(labels)} labels, but {images_path} holds {len(images)} "
            "images: the two files must be of the same set."
        )
    if labels.max() >= num_classes:
        raise ValueError(
            f"{labels_path}: label {labels.max()} at position {labels.argmax()}, expected 0 to "
            f"{num_classes - 1}: this is another set or a damaged file."
        )
    return images[..., None], labels.astype(np.int32)


def _parse(file: BinaryIO, path: str | pathlib.Path, shape: tuple[int | None, ...]) -> np.ndarray:
    magic, expected_magic = file.read(4), bytes([0, 0, UNSIGNED_BYTE, len(shape)])
    if magic != expected_magic:
        raise ValueError(
            f"{path}: magic number 0x{magic.hex()}, expected 0x{expected_magic.hex()} (unsigned "
            f"bytes in {len(shape)} dimensions): this is not the right IDX file."
        )
    header = file.read(4 * len(shape))
    if len(header) < 4 * len(shape):
        raise ValueError(f"{path}: ends inside the header: download it again.")
    found = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    if any(f == 0 or w not in (None, f) for f, w in zip(found, shape, strict=True)):
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{path}: states the shape {' x '.join(map(str, found))}, expected {wanted}, none of "
            "them 0: this is another set or a damaged file."
        )
    size = math.prod(found)
    if size > MAX_BYTES:
        raise ValueError(
            f"{path}: states {size} bytes of values, at most {MAX_BYTES} are read: the header is "
            "damaged."
        )
    values = _read_at_most(file, size + 1)
    if len(values) != size:
        amount = f"only {len(values)}" if len(values) < size else "more"
        raise ValueError(
            f"{path}: holds {amount} bytes of values, expected {size}: download it again."
        )
    return np.frombuffer(values, np.uint8).reshape(found)


def _read_at_most(file: BinaryIO, limit: int) -> bytearray:
    """Reads in blocks: one read of `limit` would reserve what a damaged header promises."""
    values = bytearray()
    while block := file.read(min(_BLOCK_BYTES, limit - len(values))):
        values += block
    return values
