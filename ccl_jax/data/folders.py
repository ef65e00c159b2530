"""Folders of images: train/<class>/ and val/<class>/, as of ImageNet, Imagenette or a user's own.

Classes are the names of the sub-folders in alphabetical order, images every file in them whose name
ends as an image's does, in alphabetical order too. Images are only listed here, not opened.
"""

import dataclasses
import pathlib

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff")
"""How the name of an image ends, in capitals or not."""

TEST_FOLDERS = ("val", "validation", "test")
"""Where test images may lie; the first that exists counts."""


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


def is_image_folder(root: pathlib.Path) -> bool:
    """Whether `root` has a folder train."""
    return (root / "train").is_dir()


def list_images(root: pathlib.Path) -> tuple[FolderImages, FolderImages, tuple[str, ...]]:
    """Lists the images of a folder.

    Args:
      root: Folder with train/<class>/ and val/<class>/ (or validation/ or test/).

    Returns:
      Training images, test images and the names of the classes.

    Raises:
      ValueError: A part is missing, or a class has no images; the message names the folder.
    """
    if not is_image_folder(root):
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


def _subfolders(folder: pathlib.Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))


def _list_split(folder: pathlib.Path, classes: tuple[str, ...]) -> FolderImages:
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(
            p
            for p in (folder / name).iterdir()
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
        )
        if not found:
            raise ValueError(
                f"{folder / name}: has no images ({', '.join(SUFFIXES)}): add some, or remove the "
                "class."
            )
        paths += found
        labels += [label] * len(found)
    return FolderImages(tuple(paths), np.array(labels, np.int32))
