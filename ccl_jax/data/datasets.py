"""Datasets that fit in memory: where images come from.

A `Dataset` is a frozen value: images as they are stored (uint8), labels, and how to normalise them.
`load` finds one by name. A new set is one function `load_x(data_dir) -> Dataset` and one line in
the table at the end.

  digits  8x8 handwritten digits that come with scikit-learn (UCI, Alpaydin & Kaynak 1998); offline.
  fmnist  Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747) from its original IDX files.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.datasets import load_digits as sklearn_load_digits

from ccl_jax.data.idx import read_images_and_labels
from ccl_jax.names import look_up


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image set. Normalised pixels are (pixel / scale - mean) / std.

    Attributes:
      name: What to call it in results.
      train_images: `[n, H, W, C]` uint8.
      train_labels: `[n]` int32, 0 to num_classes - 1.
      test_images: `[m, H, W, C]` uint8.
      test_labels: `[m]` int32.
      num_classes: Number of classes.
      mean: Mean of each channel, in units of pixel / scale.
      std: Standard deviation of each channel, in the same units, above 0.
      scale: Pixel value that counts as 1.
      class_names: What each class shows.

    Raises:
      ValueError: Arrays of another type or shape, labels out of range, or constants that do not fit
        the number of channels or classes.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_split(self.name, "train", self.train_images, self.train_labels, self.num_classes)
        _check_split(self.name, "test", self.test_images, self.test_labels, self.num_classes)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"{self.name}: training images are {self.train_images.shape[1:]}, test images "
                f"{self.test_images.shape[1:]}: both must have one shape."
            )
        channels = self.train_images.shape[3]
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"{self.name}: {len(self.mean)} means and {len(self.std)} stds for {channels} "
                "channels: give one of each a channel."
            )
        if min(self.std) <= 0 or self.scale <= 0:
            raise ValueError(f"{self.name}: std {self.std} and scale {self.scale} must be above 0.")
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{self.name}: {len(self.class_names)} class names for {self.num_classes} classes."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.train_images.shape[1:]


def load(name: str, data_dir: str | pathlib.Path | None = None) -> Dataset:
    """Loads a dataset by name.

    Args:
      name: One of `NAMES`.
      data_dir: Where its files lie. With None, the places where the system keeps them are searched.

    Returns:
      The whole set.

    Raises:
      ValueError: Unknown name, or files that are missing or damaged.
    """
    return look_up("dataset", name, _LOADERS)(None if data_dir is None else pathlib.Path(data_dir))


def load_digits(data_dir: pathlib.Path | None = None) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 0 to 16, split 1,437 / 360.

    The split is fixed: with the images sorted by class (in file order within a class), every fifth
    one is for testing, so each class gives one in five, rounded.

    Args:
      data_dir: Not used, as the images come with scikit-learn.
    """
    del data_dir
    pixels, labels = sklearn_load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype(np.uint8)
    labels = labels.astype(np.int32)
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(len(labels), bool)
    is_test[by_class[::5]] = True
    return Dataset(
        name="digits",
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
        num_classes=10,
        # Of all pixels of the 1,437 training images, divided by 16.
        mean=(0.3057544,),
        std=(0.3762169,),
        scale=16.0,
        class_names=tuple("0123456789"),
    )


FMNIST_SYSTEM_DIR = pathlib.Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's and Ubuntu's package dataset-fashion-mnist puts the files."""

_FMNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def load_fmnist(data_dir: pathlib.Path | None = None) -> Dataset:
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 pixels, 10 kinds of clothing.

    Args:
      data_dir: Folder with the four original IDX files (.gz or not), or one that holds them in
        `fashion-mnist/` or `FashionMNIST/raw/` (torchvision's layout). With None,
        `FMNIST_SYSTEM_DIR`.

    Raises:
      ValueError: A file is missing or damaged.
    """
    if data_dir is None:
        places = (FMNIST_SYSTEM_DIR,)
    else:
        places = (data_dir, data_dir / "fashion-mnist", data_dir / "FashionMNIST" / "raw")
    files = _find_files(
        "Fashion-MNIST",
        _FMNIST_FILES,
        places,
        "get the four files from https://github.com/zalandoresearch/fashion-mnist (data/fashion) "
        "and give their folder as data_dir, or run `apt-get install dataset-fashion-mnist` and "
        "leave data_dir out",
    )
    train_images, train_labels = read_images_and_labels(files[0], files[1], (28, 28), 10)
    test_images, test_labels = read_images_and_labels(files[2], files[3], (28, 28), 10)
    return Dataset(
        name="fmnist",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=10,
        # The constants of the published experiments (arXiv 2310.15890, authors' code).
        mean=(0.5,),
        std=(0.5,),
        scale=255.0,
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    )


def _find_files(
    title: str, names: Sequence[str], places: Sequence[pathlib.Path], remedy: str
) -> list[pathlib.Path]:
    """The files, plain or .gz, of the first place that has all of them."""
    missing = {}
    for place in places:
        candidates = [(place / name, place / f"{name}.gz") for name in names]
        found = [next((path for path in pair if path.is_file()), None) for pair in candidates]
        if None not in found:
            return found
        missing[place] = [name for name, path in zip(names, found, strict=True) if path is None]
    looked = "; ".join(f"{place} lacks {', '.join(lacks)}" for place, lacks in missing.items())
    raise ValueError(f"{title} needs {', '.join(names)} (each .gz or not): {looked}: {remedy}.")


def _check_split(
    name: str, split: str, images: np.ndarray, labels: np.ndarray, num_classes: int
) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{name}: {split} images are {images.dtype} {images.shape}, expected uint8 "
            "[n, H, W, C]."
        )
    if labels.dtype != np.int32 or labels.shape != images.shape[:1] or labels.size == 0:
        raise ValueError(
            f"{name}: {split} labels are {labels.dtype} {labels.shape}, expected int32 "
            f"[{len(images)}], at least one."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{name}: {split} labels go from {labels.min()} to {labels.max()}, expected 0 to "
            f"{num_classes - 1}."
        )


_LOADERS: dict[str, Callable[[pathlib.Path | None], Dataset]] = {
    "digits": load_digits,
    "fmnist": load_fmnist,
}

NAMES = tuple(_LOADERS)
"""The names that `load` knows."""
