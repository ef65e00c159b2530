"""Folders of images: train/<class>/ and val/<class>/, as of ImageNet, Imagenette or a user's own.

Classes are the names of the sub-folders in alphabetical order, images every file in them whose name
ends as an image's that Pillow reads, in alphabetical order too. Images are only listed here, not opened.
What else lies there is not used, and `unused_note` says so.

A folder may also hold its classes only, undivided: then a part of every class is held out for testing.
A folder of domains has a folder of either kind for each domain, with the same classes in all.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Iterable

import numpy as np
from PIL import Image

from ccl_jax.randomness import Stream, generator

NO_PICTURES = frozenset(["BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"])
"""Formats whose endings Pillow knows, but which it cannot draw, or not by itself."""

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
      unused: What else lies there: links to nothing, folders, hidden files and others.
    """

    paths: tuple[pathlib.Path, ...]
    labels: np.ndarray
    unused: tuple[pathlib.Path, ...] = ()

    def read(self, index: int) -> bytes:
        """The file's content."""
        return self.paths[index].read_bytes()

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])


@functools.cache
def suffixes() -> frozenset[str]:
    """How the name of an image ends, in lower case: as of a format that Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(ending for ending, name in known.items() if name not in NO_PICTURES)


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
    train = root / "train"
    unused = (*_beside(root, ("train", test.name)), *_all_beside(train, classes))
    return (
        _list_split(train, classes, unused),
        _list_split(test, classes, _all_beside(test, classes)),
        classes,
    )


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
    whole, classes = list_undivided(root)
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
    train, test = _pick(whole, ~is_test), _pick(whole, is_test)
    return train, dataclasses.replace(test, unused=()), classes


def list_undivided(root: pathlib.Path) -> tuple[FolderImages, tuple[str, ...]]:
    """Lists the images of a folder with <class>/ only, all of them, and the names of the classes.

    Raises:
      ValueError: A class has no images; the message names its folder.
    """
    classes = _subfolders(root)
    return _list_split(root, classes, _beside(root, classes)), classes


def list_flat(root: pathlib.Path) -> FolderImages:
    """Lists the images that lie in a folder itself, in alphabetical order; each has the label 0."""
    paths = tuple(path for path in sorted(root.iterdir()) if _is_image(path))
    return FolderImages(
        paths, np.zeros(len(paths), np.int32), _beside(root, [path.name for path in paths])
    )


def unused_note(root: pathlib.Path, unused: Iterable[pathlib.Path]) -> str:
    """What to tell a user of what lies in a folder and is not used.

    Args:
      root: The folder.
      unused: What is not used, below it; `FolderImages.unused`.

    Returns:
      One line with numbers, reasons and the first names; "" where everything is used.
    """
    kinds: dict[str, list[str]] = {}
    for path in unused:
        kinds.setdefault(_why_unused(path), []).append(str(path.relative_to(root)))
    parts = [
        f"{why}, {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for why, names in kinds.items()
    ]
    return f"{root}: not used: {'; '.join(parts)}." if parts else ""


def _why_unused(path: pathlib.Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return "folders that are not looked into"
    if not path.exists():
        return "links that lead nowhere"
    if path.suffix.lower() in suffixes():
        return "images that are in no class's folder"
    return "files whose names do not end as an image's"


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
    return path.suffix.lower() in suffixes() and not path.name.startswith(".") and path.is_file()


def _beside(folder: pathlib.Path, used: Collection[str]) -> tuple[pathlib.Path, ...]:
    """What lies beside the folders that are used, but for texts and what is hidden, which may."""
    there = (path for path in _all_beside(folder, used) if path.name[0] != ".")
    return tuple(path for path in there if _is_image(path) or not path.is_file())


def _all_beside(folder: pathlib.Path, used: Collection[str]) -> tuple[pathlib.Path, ...]:
    return tuple(path for path in sorted(folder.iterdir()) if path.name not in used)


def _list_split(
    folder: pathlib.Path, classes: tuple[str, ...], unused: tuple[pathlib.Path, ...]
) -> FolderImages:
    """Images of all classes; `unused` is what is known to be so already."""
    paths, labels, others = [], [], list(unused)
    for label, name in enumerate(classes):
        found, rest = [], []
        for path in sorted((folder / name).iterdir()):
            (found if _is_image(path) else rest).append(path)
        if not found:
            raise ValueError(
                f"{folder / name}: has no images, which are files with an ending that Pillow reads "
                f"(.jpg, .png, .webp ...): add some, or remove the class. {unused_note(folder, rest)}"
            )
        paths += found
        labels += [label] * len(found)
        others += rest
    return FolderImages(tuple(paths), np.array(labels, np.int32), tuple(others))


def _pick(images: FolderImages, chosen: np.ndarray) -> FolderImages:
    """Those for which `chosen [n]` is True."""
    paths = tuple(path for path, yes in zip(images.paths, chosen, strict=True) if yes)
    return FolderImages(paths, images.labels[chosen], images.unused)
