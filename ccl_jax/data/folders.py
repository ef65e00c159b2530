"""Folders of images: train/<class>/ and val/<class>/, as of ImageNet, Imagenette or a user's own.

Classes are the names of the sub-folders in alphabetical order, images every file in them whose name
ends as an image's does, in alphabetical order too. Images are only listed here, not opened.

A folder may also hold its classes only, undivided: then a part of every class is held out for testing.
A folder of domains has a folder of either kind for each domain, with the same classes in all.
"""

import dataclasses
import pathlib

import numpy as np

from ccl_jax.randomness import Stream, generator

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff")
"""How the name of an image ends, in capitals or not."""

TEST_FOLDERS = ("val", "validation", "test")
"""Where test images may lie; the first that exists counts."""

TEST_PART = 0.2
"""The part of every class of an undivided folder that is held out for testing."""

TEST_SEED = 0
"""Seed of the choice; always the same, so that all runs are tested on the same images."""


@dataclasses.dataclass(frozen=True, eq=False)
class FolderImages:
    """The images of one split; an `ImageStore`.

    Attributes:
      paths: Files.
      labels: `[n]` int32, the class of each.
    """

    paths: tuple[pathlib.Path, ...]
    labels: np.ndarray

    def read(self, index: int) -> bytes:
        """The file's content."""
        return self.paths[index].read_bytes()

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])


def is_divided(root: pathlib.Path) -> bool:
    """Whether `root` has a folder train."""
    return (root / "train").is_dir()


def is_undivided(root: pathlib.Path) -> bool:
    """Whether `root` has neither train nor val, but classes: sub-folders in which images lie."""
    if not root.is_dir() or any((root / name).is_dir() for name in ("train", *TEST_FOLDERS)):
        return False
    return any(_is_image(path) for name in _subfolders(root) for path in (root / name).iterdir())


def list_images(root: pathlib.Path) -> tuple[FolderImages, FolderImages, tuple[str, ...]]:
    """Lists the images of a folder with train/<class>/ and val/<class>/.

    Args:
      root: Folder with train/<class>/ and val/<class>/ (or validation/ or test/).

    Returns:
      Training images, test images and the names of the classes.

    Raises:
      ValueError: A part is missing, or a class has no images; the message names the folder.
    """
    if not is_divided(root):
        raise ValueError(f"{root}: has no folder train: images must lie in train/<class>/.")
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if test is None:
        raise ValueError(
            f"{root}: has no folder {', '.join(TEST_FOLDERS)}: test images must lie in val/<class>/."
        )
    classes, test_classes = _subfolders(root / "train"), _subfolders(test)
    if not classes:
        raise ValueError(f"{root / 'train'}: has no sub-folders: each class needs one of its own.")
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise ValueError(
            f"{root}: class {odd[0]!r} is in only one of train/ and {test.name}/: both need the "
            "same classes."
        )
    return _list_split(root / "train", classes), _list_split(test, classes), classes


def divide(root: pathlib.Path) -> tuple[FolderImages, FolderImages, tuple[str, ...]]:
    """Lists the images of a folder with <class>/ only; `TEST_PART` of every class is for testing.

    At least one image of a class is, drawn with `TEST_SEED`; the others are for training.

    Args:
      root: Folder for which `is_undivided`.

    Returns:
      Training images, test images and the names of the classes.

    Raises:
      ValueError: A class has less than two images; the message names its folder.
    """
    classes = _subfolders(root)
    whole = _list_split(root, classes)
    is_test = np.zeros(len(whole.labels), bool)
    for label, name in enumerate(classes):
        members = np.flatnonzero(whole.labels == label)
        if len(members) < 2:
            raise ValueError(
                f"{root / name}: has one image; a class needs two, one of them for testing: add "
                "some, or remove the class."
            )
        order = generator(Stream.HOLD_OUT, TEST_SEED, label).permutation(members)
        is_test[order[: max(1, round(TEST_PART * len(members)))]] = True
    return _pick(whole, ~is_test), _pick(whole, is_test), classes


def domains(root: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The folders of a folder of domains, in alphabetical order; () if it is none.

    Args:
      root: A folder; one that holds classes, or train/, is itself a domain and not a folder of them.

    Raises:
      ValueError: One of its sub-folders is a domain and another is not, or the classes of two differ;
        the message names the folder.
    """
    if is_divided(root) or is_undivided(root) or not root.is_dir():
        return ()
    found = {root / name: _classes(root / name) for name in _subfolders(root)}
    if not any(found.values()):
        return ()
    first, expected = next((folder, names) for folder, names in found.items() if names)
    for folder, names in found.items():
        if not names:
            raise ValueError(
                f"{folder}: is no domain: it needs <class>/ or train/<class>/ with images, as {first} "
                "has; remove it otherwise."
            )
        if names != expected:
            odd = sorted(set(names) ^ set(expected))
            raise ValueError(
                f"{folder}: domains need the same classes, and class {odd[0]!r} is in only one of it "
                f"and {first}: add it, or remove it."
            )
    return tuple(found)


def _classes(domain: pathlib.Path) -> tuple[str, ...]:
    """The names of a domain's classes; () if it is none."""
    if is_divided(domain):
        return _subfolders(domain / "train")
    return _subfolders(domain) if is_undivided(domain) else ()


def _subfolders(folder: pathlib.Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))


def _is_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _list_split(folder: pathlib.Path, classes: tuple[str, ...]) -> FolderImages:
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).iterdir() if _is_image(path))
        if not found:
            raise ValueError(
                f"{folder / name}: has no images ({', '.join(SUFFIXES)}): add some, or remove the "
                "class."
            )
        paths += found
        labels += [label] * len(found)
    return FolderImages(tuple(paths), np.array(labels, np.int32))


def _pick(images: FolderImages, chosen: np.ndarray) -> FolderImages:
    """Those for which `chosen [n]` is True."""
    paths = tuple(path for path, yes in zip(images.paths, chosen, strict=True) if yes)
    return FolderImages(paths, images.labels[chosen])
