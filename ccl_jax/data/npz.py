"""A user's own set as one .npz file: arrays of images and labels.

The names are train_images, train_labels, test_images, test_labels, or Keras' x_train, y_train,
x_test, y_test; class_names and users (whose each training image is) may be there too. Nothing in the
file is executed (no pickles).
"""

import contextlib
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ccl_jax.data.base import check_images

_NAMES = ("train_images", "train_labels", "test_images", "test_labels")
_KERAS_NAMES = ("x_train", "y_train", "x_test", "y_test")


class Arrays(NamedTuple):
    """The arrays of an .npz.

    Attributes:
      train_images: `[n, H, W, C]` uint8.
      train_labels: `[n]` int32.
      test_images: `[m, H, W, C]` uint8.
      test_labels: `[m]` int32.
      class_names: One a class, up to the highest label.
      users: `[n]` whose each training image is, integers or texts; None where that is not said.
      unused: Names of the other arrays in the file.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    users: np.ndarray | None
    unused: tuple[str, ...]


def read(path: pathlib.Path) -> Arrays:
    """Reads a file.

    Args:
      path: The .npz: images uint8 `[n, H, W]` or `[n, H, W, C]`, labels integers `[n]` or `[n, 1]`,
        class_names texts, or bytes in UTF-8, `[classes]`, users integers, texts or bytes `[n]`.

    Raises:
      ValueError: The file cannot be read, an array is missing, or has another type or shape. The
        message names the file.
    """
    with _opened(path, ", ".join(_NAMES)) as file:
        names = _KERAS_NAMES if _KERAS_NAMES[0] in file else _NAMES
        missing = [name for name in names if name not in file]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}, only {', '.join(file.files)}")
        arrays = [file[name] for name in names]
        given = _texts(file["class_names"]) if "class_names" in file else None
        users = file.get("users")
        known = (*names, "class_names", "users")
        unused = tuple(name for name in file.files if name not in known)
    train_images, test_images = (_images(path, names[k], arrays[k]) for k in (0, 2))
    train_labels, test_labels = (_labels(path, names[k], arrays[k]) for k in (1, 3))
    classes = 1 + int(max(train_labels.max(), test_labels.max()))
    class_names = tuple(map(str, range(classes)) if given is None else given)
    arrays = (train_images, train_labels, test_images, test_labels)
    return Arrays(*arrays, class_names, users, unused)


class Shown(NamedTuple):
    """Images without a training set.

    Attributes:
      images: `[n, H, W, C]` uint8 or float.
      labels: `[n]` int32; None where there are none.
      class_names: None where there are none.
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None


def read_images(path: pathlib.Path) -> Shown:
    """Reads images to be classified.

    Args:
      path: The .npz: images (or test_images, x_test), uint8 or float `[n, H, W]` or `[n, H, W, C]`;
        and, if they are known, labels (test_labels, y_test) and class_names.

    Raises:
      ValueError: The file cannot be read, or an array has another type or shape.
    """
    with _opened(path, f"an array of images ({', '.join(_IMAGES)})") as file:
        take = lambda names: next(((name, file[name]) for name in names if name in file), None)
        found, labels = take(_IMAGES), take(_LABELS)
        if found is None:
            raise ValueError(f"it has only {', '.join(file.files) or 'nothing'}")
        given = tuple(_texts(file["class_names"])) if "class_names" in file else None
    name, images = found
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype.kind == "f" and images.ndim == 4:
        if not (images.size and np.isfinite(images).all()):
            raise ValueError(f"{path}: {name} has no pixels, or some that are no numbers.")
        images = images.astype(np.float32)
    else:
        check_images(f"{path}: {name} is", images)
    if labels is not None:
        labels = _labels(path, *labels)
        if len(labels) != len(images):
            raise ValueError(f"{path}: has {len(images)} images and {len(labels)} labels.")
    return Shown(images, labels, given)


_IMAGES, _LABELS = ("images", "test_images", "x_test"), ("labels", "test_labels", "y_test")


@contextlib.contextmanager
def _opened(path: pathlib.Path, form: str) -> Iterator[np.lib.npyio.NpzFile]:
    """An .npz; what fails while it is read names the file and what should be in it."""
    try:
        # Opened here, as np.load leaves a file open where it fails.
        with path.open("rb") as raw:
            start = raw.read(6)
            raw.seek(0)
            if not start.startswith((b"PK", b"\x93NUMPY")):
                raise ValueError("it has no arrays of NumPy")
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            with file:
                yield file
    # RuntimeError: encrypted; NotImplementedError: a way of packing that zipfile does not know.
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{path}: cannot be used ({error}): it must be a .npz with {form}."
        ) from error


def _texts(names: np.ndarray) -> list[str]:
    if names.ndim != 1 or names.dtype.kind not in "SUiu":
        raise ValueError(f"class_names is {names.dtype} {names.shape}, expected texts [classes]")
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]


def _images(path: pathlib.Path, name: str, images: np.ndarray) -> np.ndarray:
    images = images[..., None] if images.ndim == 3 else images
    check_images(f"{path}: {name} is", images)
    return images


def _labels(path: pathlib.Path, name: str, labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or labels.size != len(labels):
        raise ValueError(
            f"{path}: {name} is {labels.dtype} {labels.shape}, expected integers [n], the number of "
            "each image's class."
        )
    if labels.size == 0 or labels.min() < 0 or labels.max() > _MAX_LABEL:
        raise ValueError(f"{path}: {name} must hold classes from 0 to {_MAX_LABEL}, at least one.")
    return labels.reshape(-1).astype(np.int32)


_MAX_LABEL = 99_999  # More classes than any image set has: a higher label is no class.
