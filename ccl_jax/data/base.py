"""What a dataset is: a frozen value with images, labels, and how to normalise them.

A `Dataset` holds its images as one array and lives on the device; a `StreamedDataset` holds only the
way to its images, which are decoded while training runs (`streaming`).
"""

import dataclasses
from typing import Protocol

import numpy as np

from ccl_jax.randomness import Stream, generator


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
      notes: What a user should know of its files, one line each.
      users: `[n]` whose each training image is, integers or texts; None where that is not known.

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
    notes: tuple[str, ...] = ()
    users: np.ndarray | None = None

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            check_images(f"{self.name}: {split} images are", images)
            _check_labels(self.name, split, labels, len(images), self.num_classes)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"{self.name}: training images are {self.train_images.shape[1:]}, test images "
                f"{self.test_images.shape[1:]}: both must have one shape."
            )
        number, users = len(self.train_images), self.users
        if users is not None and (users.shape != (number,) or users.dtype.kind not in "iuUS"):
            raise ValueError(
                f"{self.name}: users is {users.dtype} {users.shape}, expected integers or texts "
                f"[{number}], one a training image."
            )
        _check_constants(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.train_images.shape[1:]

    def with_train_labels(self, labels: np.ndarray) -> "Dataset":
        """The same images with other labels `[n]` int32."""
        return dataclasses.replace(self, train_labels=labels)


def check_images(subject: str, images: np.ndarray) -> None:
    """Makes sure that images are pixels in the order of rows, columns, channels.

    Args:
      subject: What the error begins with, as "toy: train images are".
      images: Should be `[n, H, W, C]` uint8, none of them 0.

    Raises:
      ValueError: They are of another type or shape, have no pixels, or their channels come first.
    """
    found = f"{subject} {images.dtype} {images.shape}"
    if images.dtype != np.uint8 or images.ndim != 4:
        remedy = ": bring them to 0 to 255 and round them" if images.dtype.kind == "f" else ""
        raise ValueError(f"{found}, expected uint8 [n, H, W, C] with pixels of 0 to 255{remedy}.")
    if 0 in images.shape:
        raise ValueError(f"{found}, which has no pixels: expected [n, H, W, C], none of them 0.")
    _, height, width, channels = images.shape
    # No picture of more than red, green, blue and alpha has less rows than columns and channels.
    if channels > 4 and height < min(width, channels):
        raise ValueError(
            f"{found}, which looks like [n, C, H, W], with {height} channels first: expected "
            "[n, H, W, C]; transpose(0, 2, 3, 1) brings it there."
        )


class ImageStore(Protocol):
    """Encoded images (JPEG, PNG ...) and their labels, one split of a streamed set.

    Attributes:
      labels: `[n]` int32.
    """

    labels: np.ndarray

    def read(self, index: int) -> bytes:
        """The encoded image; an OSError or ValueError if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in an error."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Relabelled:
    """An `ImageStore` with other labels."""

    store: ImageStore
    labels: np.ndarray

    def read(self, index: int) -> bytes:
        """The store's image."""
        return self.store.read(index)

    def name(self, index: int) -> str:
        """The store's name of the image."""
        return self.store.name(index)


class Part:
    """An `ImageStore` with some of the images of another: those at `indices [n]`."""

    def __init__(self, store: ImageStore, indices: np.ndarray) -> None:
        self.labels = store.labels[indices]
        self._store = store
        self._indices = indices

    def read(self, index: int) -> bytes:
        """The store's image."""
        return self._store.read(int(self._indices[index]))

    def name(self, index: int) -> str:
        """The store's name of the image."""
        return self._store.name(int(self._indices[index]))


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedDataset:
    """A labelled image set that is read and decoded as it is used.

    Images are brought to `stored_side` x `stored_side` on the host (`images.decode`); in the step the
    augmentation crops `image_shape` out of them, in an evaluation it is the centre.

    Attributes:
      name: What to call it in results.
      train: Training images.
      test: Test images.
      image_shape: (H, W, C) of what the model sees.
      stored_side: Height and width in pixels of what the host decodes to, at least H and W.
      num_classes: Number of classes.
      mean: As in `Dataset`.
      std: As in `Dataset`.
      scale: As in `Dataset`.
      class_names: What each class shows.
      notes: What a user should know of its files, one line each.

    Raises:
      ValueError: Labels out of range, or constants that do not fit each other.
    """

    name: str
    train: ImageStore
    test: ImageStore
    image_shape: tuple[int, int, int]
    stored_side: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split, store in (("train", self.train), ("test", self.test)):
            _check_labels(self.name, split, store.labels, len(store.labels), self.num_classes)
        if self.stored_side < max(self.image_shape[:2]):
            raise ValueError(
                f"{self.name}: stored_side is {self.stored_side}, it must be at least the image's "
                f"{max(self.image_shape[:2])}."
            )
        _check_constants(self)

    @property
    def train_labels(self) -> np.ndarray:
        """`[n]` int32."""
        return self.train.labels

    @property
    def test_labels(self) -> np.ndarray:
        """`[m]` int32."""
        return self.test.labels

    def with_train_labels(self, labels: np.ndarray) -> "StreamedDataset":
        """The same images with other labels `[n]` int32."""
        return dataclasses.replace(self, train=Relabelled(self.train, labels))


def hold_out(
    dataset: Dataset | StreamedDataset, fraction: float, seed: int
) -> Dataset | StreamedDataset:
    """Holds out a random part of the training images, which takes the place of the test images.

    For choosing settings: what is chosen on the part that was held out has not seen the test set.

    Args:
      dataset: The whole set.
      fraction: Part of the training images, in (0, 1).
      seed: Seed of the choice, 0 to 2**32 - 1.

    Raises:
      ValueError: The fraction leaves nothing to train or to evaluate on.
    """
    size = len(dataset.train_labels)
    held = round(fraction * size)
    if not 0 < held < size:
        raise ValueError(
            f"{dataset.name}: holding out {fraction} of {size} training images leaves {size - held} "
            f"to train and {held} to evaluate on; both must be at least 1."
        )
    order = generator(Stream.HOLD_OUT, seed).permutation(size)
    test, train = np.sort(order[:held]), np.sort(order[held:])
    if isinstance(dataset, StreamedDataset):
        parts = {"train": Part(dataset.train, train), "test": Part(dataset.train, test)}
    else:
        images, labels = dataset.train_images, dataset.train_labels
        parts = {
            "train_images": images[train],
            "train_labels": labels[train],
            "test_images": images[test],
            "test_labels": labels[test],
            "users": None if dataset.users is None else dataset.users[train],
        }
    return dataclasses.replace(dataset, **parts)


def take(dataset: Dataset | StreamedDataset, size: int, seed: int) -> Dataset | StreamedDataset:
    """A random part of the training images; the test images stay.

    Args:
      dataset: The whole set.
      size: How many training images are taken.
      seed: Seed of the choice, 0 to 2**32 - 1.

    Raises:
      ValueError: There are not so many.
    """
    there = len(dataset.train_labels)
    if not 1 <= size <= there:
        raise ValueError(f"train_samples is {size}; {dataset.name} has 1 to {there} to take")
    taken = np.sort(generator(Stream.TAKE, seed).permutation(there)[:size])
    if isinstance(dataset, StreamedDataset):
        return dataclasses.replace(dataset, train=Part(dataset.train, taken))
    parts = {
        "train_images": dataset.train_images[taken],
        "train_labels": dataset.train_labels[taken],
        "users": None if dataset.users is None else dataset.users[taken],
    }
    return dataclasses.replace(dataset, **parts)


def renumber(dataset: Dataset | StreamedDataset) -> Dataset | StreamedDataset:
    """Leaves out classes that no image shows, as class 0 of labels that count from 1.

    Args:
      dataset: The whole set.

    Returns:
      The same images; the classes that are left keep their order and their names.
    """
    occurring = np.union1d(dataset.train_labels, dataset.test_labels)
    number = lambda labels: np.searchsorted(occurring, labels).astype(np.int32)
    train, test = number(dataset.train_labels), number(dataset.test_labels)
    if isinstance(dataset, StreamedDataset):
        parts = {
            "train": Relabelled(dataset.train, train),
            "test": Relabelled(dataset.test, test),
        }
    else:
        parts = {"train_labels": train, "test_labels": test}
    names = tuple(dataset.class_names[k] for k in occurring)
    return dataclasses.replace(dataset, num_classes=len(names), class_names=names, **parts)


def _check_labels(name: str, split: str, labels: np.ndarray, number: int, classes: int) -> None:
    if labels.dtype != np.int32 or labels.shape != (number,) or labels.size == 0:
        raise ValueError(
            f"{name}: {split} labels are {labels.dtype} {labels.shape}, expected int32 "
            f"[{number}], one an image and at least one."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{name}: {split} labels go from {labels.min()} to {labels.max()}, expected 0 to "
            f"{classes - 1}."
        )


def _check_constants(dataset: Dataset | StreamedDataset) -> None:
    channels = dataset.image_shape[2]
    if not len(dataset.mean) == len(dataset.std) == channels:
        raise ValueError(
            f"{dataset.name}: {len(dataset.mean)} means and {len(dataset.std)} stds for {channels} "
            "channels: give one of each a channel."
        )
    if min(dataset.std) <= 0 or dataset.scale <= 0:
        raise ValueError(
            f"{dataset.name}: std {dataset.std} and scale {dataset.scale} must be above 0."
        )
    if len(dataset.class_names) != dataset.num_classes:
        raise ValueError(
            f"{dataset.name}: {len(dataset.class_names)} class names for {dataset.num_classes} "
            "classes."
        )
