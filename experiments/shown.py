"""Images that a trained model is shown, as it knows them: a run's test set, or a user's own."""

import concurrent.futures
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ccl_jax.data import augment, datasets, folders, images, npz
from ccl_jax.data.base import Dataset, ImageStore, StreamedDataset
from ccl_jax.data.streaming import Skipped
from ccl_jax.runs.facts import Facts

# What the brightness of red, green and blue is in grey (ITU-R BT.601), as Pillow has it.
_GREY = np.array([0.299, 0.587, 0.114])


class Shown:
    """Images by number.

    Attributes:
      names: `[n]` what the images are called.
      labels: `[n]` int32 classes of the run; None where they are not known.
      left_out: Numbers of images that could not be read; read as black.
    """

    CHUNK = 10_000

    def __init__(self, names: Sequence[str], labels: np.ndarray | None) -> None:
        self.names, self.labels = names, labels
        self.left_out: set[int] = set()

    def read(self, indices: np.ndarray) -> np.ndarray:
        """`[k, H, W, C]`, as the run's `predict` takes them."""
        raise NotImplementedError

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All numbers and images, as many at a time as fit in memory."""
        for start in range(0, len(self.names), self.CHUNK):
            indices = np.arange(start, min(start + self.CHUNK, len(self.names)))
            yield indices, self.read(indices)

    def notes(self) -> list[str]:
        """What was done to the images that have been read, one line each."""
        return []


class Arrays(Shown):
    """Images in memory.

    Args:
      images: `[n, H, W, C]`.
      labels: `[n]` int32, or None.
      notes: What was done to them.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray | None, notes: Sequence[str] = ()
    ) -> None:
        super().__init__(range(len(images)), labels)
        self._images, self._notes = images, list(notes)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self._images[indices]

    def notes(self) -> list[str]:
        return self._notes


class Files(Shown):
    """Encoded images, brought to the size, the channels and the range of pixels that the run knows.

    Args:
      store: Where they are.
      names: What they are called.
      labels: `[n]` int32, or None.
      facts: Of the run's dataset.
      skipped: Takes those that cannot be read; None if that is an error.
      known: Notes that are known before any image is read.

    Raises:
      ValueError: No image file has as many channels as the run's images.
    """

    CHUNK = 512

    def __init__(
        self,
        store: ImageStore,
        names: Sequence[str],
        labels: np.ndarray | None,
        facts: Facts,
        skipped: Skipped | None = None,
        known: Sequence[str] = (),
    ) -> None:
        super().__init__(names, labels)
        if facts.image_shape[2] not in (1, 3):
            raise ValueError(
                f"the run's images have {facts.image_shape[2]} channels, image files have 1 or 3; "
                "give a .npz with arrays of that shape"
            )
        self._store, self._facts, self._skipped = store, facts, skipped
        self._known = list(known)
        # Height and width of what is read. Only streamed images have a margin that the model cuts off.
        side, size = facts.side, facts.image_shape[:2]
        self._size = size if side == max(size) else (side, side)
        self._resized: set[int] = set()
        self._recoloured: set[int] = set()
        if skipped is not None:
            self.left_out = skipped.indices

    def read(self, indices: np.ndarray) -> np.ndarray:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack(list(pool.map(self._decode, map(int, indices))))

    def _decode(self, index: int) -> np.ndarray:
        side, channels = self._facts.side, self._facts.image_shape[2]
        try:
            pixels = images.decode(self._store.read(index))
        except (OSError, ValueError) as error:
            name = self._store.name(index)
            if self._skipped is None:
                raise ValueError(f"{name}: {error}; mend or remove it") from error
            self._skipped.add(index, name, error)
            return np.zeros((*self._size, channels), np.uint8)
        if pixels.shape[:2] != self._size:
            self._resized.add(index)
            square = images.square(Image.fromarray(pixels), side, _by_area(self._facts))
            pixels = augment.centre_crop(np.asarray(square), self._size)
        if _is_grey(pixels) != (channels == 1):
            self._recoloured.add(index)
        pixels = _as_grey(pixels, self._facts) if channels == 1 else pixels
        return _in_range(pixels, self._facts.scale)

    def notes(self) -> list[str]:
        # The run's own test set is prepared in this way wherever it is evaluated.
        if self._skipped is not None:
            unread = len(self.left_out)
            return [f"{unread} images that cannot be read are left out"] if unread else []
        kind = "grey" if self._facts.image_shape[2] == 1 else "colour"
        notes, size = list(self._known), " x ".join(map(str, self._size))
        if self._resized:
            notes.append(
                f"{len(self._resized)} of {len(self.names)} images were resized to {size} "
                "pixels (the shorter side; of the longer the middle is seen)"
            )
        if self._recoloured:
            notes.append(f"{len(self._recoloured)} of {len(self.names)} images were made {kind}")
        if self._facts.scale != 255:
            notes.append(f"white, 255 in a file, is {self._facts.scale:g} in the run's images")
        return notes


def test_set(dataset: Dataset | StreamedDataset, facts: Facts, max_unreadable: int) -> Shown:
    """A dataset's test images.

    Raises:
      ValueError: Its classes are not those of the run.
    """
    if tuple(dataset.class_names) != facts.class_names:
        raise ValueError(
            f"the test set has the classes {_listed(dataset.class_names)}, the run was trained on "
            f"{_listed(facts.class_names)}; give the data that it was trained on as --data_dir"
        )
    if isinstance(dataset, StreamedDataset):
        names = range(len(dataset.test_labels))
        skipped = Skipped(max_unreadable)
        return Files(dataset.test, names, dataset.test_labels, facts, skipped)
    return Arrays(dataset.test_images, dataset.test_labels)


def given(path: Path, facts: Facts) -> Shown:
    """A user's own images.

    Args:
      path: A folder of images, a folder with a folder of images for each class, an image, or a .npz.
      facts: Of the run's dataset.

    Raises:
      ValueError: There are none, they cannot be read, or their classes are not those of the run.
    """
    if path.is_dir():
        return _folder(path, facts)
    if not path.exists():
        raise ValueError(f"{path}: does not exist; give a folder of images, an image or a .npz")
    if path.suffix.lower() == ".npz":
        return _npz(path, facts)
    if path.suffix.lower() not in folders.suffixes():
        raise ValueError(f"{path}: is no folder of images, image or .npz")
    store = folders.FolderImages((path,), np.zeros(1, np.int32))
    return Files(store, [path.name], None, facts)


def _folder(root: Path, facts: Facts) -> Shown:
    store, labels = folders.list_flat(root), None
    if not store.paths:
        if not folders.is_undivided(root):
            hint = f"; give {root}/val" if folders.is_divided(root) else ""
            raise ValueError(
                f"{root}: has no images that Pillow reads (.jpg, .png, .webp ...){hint}"
            )
        store, classes = folders.list_undivided(root)
        _check_classes(root, [x for x in classes if x not in facts.class_names], facts, "classes")
        number = np.array([facts.class_names.index(name) for name in classes], np.int32)
        labels = number[store.labels]
    names = [str(file.relative_to(root)) for file in store.paths]
    note = folders.unused_note(root, store.unused).rstrip(".")
    return Files(store, names, labels, facts, known=[note] if note else [])


def _npz(path: Path, facts: Facts) -> Shown:
    found, labels, class_names = npz.read_images(path)
    if labels is not None:
        labels = _as_classes(path, labels, class_names, facts)
    if found.min() < 0 or found.max() > facts.scale:
        raise ValueError(
            f"{path}: has pixels from {found.min():g} to {found.max():g}; those of the run go from 0 to "
            f"{facts.scale:g} and are normalised by it: bring them there"
        )
    (height, width, channels), notes = facts.image_shape, []
    if found.max() <= 1 < facts.scale:
        notes.append(f"the brightest pixel is {found.max():g} of {facts.scale:g}")
    if found.shape[3] != channels:
        if {found.shape[3], channels} != {1, 3}:
            raise ValueError(
                f"{path}: images have {found.shape[3]} channels, those of the run {channels}"
            )
        found = _as_grey(found, facts) if channels == 1 else np.repeat(found, 3, axis=3)
        notes.append(f"all images were made {'grey' if channels == 1 else 'colour'}")
    if found.shape[1:3] not in ((height, width), (facts.side, facts.side)):
        before = " x ".join(map(str, found.shape[1:3]))
        found = np.stack([_resized(image, facts) for image in found])
        notes.append(
            f"all images were resized from {before} to {facts.side} x {facts.side} pixels (the "
            "shorter side; of the longer the middle is seen)"
        )
    return Arrays(found, labels, notes)


def _as_classes(
    path: Path, labels: np.ndarray, names: Sequence[str] | None, facts: Facts
) -> np.ndarray:
    """The labels of a .npz as classes of the run: by name, or else by number.

    A .npz without names was read in training with its numbers as names, of which a run with
    `--renumber_labels` has only some.
    """
    own, occurring = facts.class_names, np.unique(labels).tolist()
    if names is None and all(name.isdecimal() and name == str(int(name)) for name in own):
        names = tuple(map(str, range(occurring[-1] + 1)))
    if names is None or names == own:
        _check_classes(path, [k for k in occurring if k >= len(own)], facts, "labels")
        return labels
    if occurring[-1] >= len(names):
        raise ValueError(
            f"{path}: has the label {occurring[-1]} and {len(names)} class_names; give one for each "
            "label, or leave out the labels"
        )
    other = [names[k] for k in occurring if names[k] not in own]
    _check_classes(path, other, facts, "labels")
    return np.array([own.index(names[k]) for k in labels.tolist()], np.int32)


def _check_classes(path: Path, others: Sequence[object], facts: Facts, what: str) -> None:
    """Raises ValueError if there are classes that the run does not have.

    Args:
      path: Where they are.
      others: These classes.
      facts: Of the run's dataset.
      what: What says them, and can be left out.
    """
    if others:
        raise ValueError(
            f"{path}: has the classes {_listed(others)}, the run was trained on "
            f"{_listed(facts.class_names)}; give images of those, or leave out the {what}"
        )


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:10])) + (f" ... ({len(names)})" if len(names) > 10 else "")


def _is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[..., :1]).all())


def _as_grey(pixels: np.ndarray, facts: Facts) -> np.ndarray:
    weights = np.full(3, 1 / 3) if _joined(facts) else _GREY
    grey = (pixels @ weights)[..., None]
    return grey.round().astype(np.uint8) if pixels.dtype == np.uint8 else grey.astype(np.float32)


def _in_range(pixels: np.ndarray, scale: float) -> np.ndarray:
    """Pixels of 0 to 255 as those of 0 to scale."""
    return pixels if scale == 255 else pixels.astype(np.float32) * np.float32(scale / 255)


def _joined(facts: Facts) -> bool:
    """Whether the run has several domains, of which all are made alike (`heterogeneity.join`)."""
    return " + " in facts.name


def _by_area(facts: Facts) -> bool:
    """How images are made smaller: photographs, and those of other domains, bilinearly in training."""
    return not _joined(facts) and facts.name not in datasets.SIZED


def _resized(image: np.ndarray, facts: Facts) -> np.ndarray:
    """As `images.square`, of any type and number of channels."""
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(image, -1, 0)]
    pixels = np.stack(
        [np.asarray(images.square(plane, facts.side, _by_area(facts))) for plane in planes], axis=-1
    )
    return pixels.round().astype(np.uint8) if image.dtype == np.uint8 else pixels
