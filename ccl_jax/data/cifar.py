"""The binary files of CIFAR-10 and CIFAR-100 (Krizhevsky 2009), archived or unpacked.

A file is a row of records: the labels, one byte each (CIFAR-10: the class; CIFAR-100: the superclass
and the class), and 3,072 bytes of pixels, red, green and blue one after another, each 32 rows of 32.
Described at https://www.cs.toronto.edu/~kriz/cifar.html, which also publishes the checksums.

An archive is read in memory: members with the expected names only, plain files only, up to a size.
The "python version" of the archives holds pickles, which can execute code: it is not read.
"""

import dataclasses
import hashlib
import pathlib
import tarfile
import zlib
from typing import NamedTuple

import numpy as np

MAX_MEMBER_BYTES = 2**28
"""Most bytes of one file in an archive; the largest, CIFAR-100's train.bin, has 153,700,000."""

_MAX_MEMBERS = 100
_PIXELS = 3 * 32 * 32


@dataclasses.dataclass(frozen=True)
class Format:
    """One of the two sets.

    Attributes:
      title: Its name.
      archive: Name of the archive.
      md5: The archive's published checksum.
      folder: Folder in the archive.
      train_files: Files of training images.
      test_file: File of test images.
      records: Images in each published file of training images, and in the test file.
      label_ranges: How many values each label byte of a record has; the last one is the class.
      python_names: Archive and folder of the version with pickles.
      class_names: What the classes show; CIFAR-100's are numbers.
    """

    title: str
    archive: str
    md5: str
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    records: tuple[int, int]
    label_ranges: tuple[int, ...]
    python_names: tuple[str, str]
    class_names: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """All files of images."""
        return (*self.train_files, self.test_file)


CIFAR10 = Format(
    title="CIFAR-10",
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
    test_file="test_batch.bin",
    records=(10_000, 10_000),
    label_ranges=(10,),
    python_names=("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    class_names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
)
CIFAR100 = Format(
    title="CIFAR-100",
    archive="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train_files=("train.bin",),
    test_file="test.bin",
    records=(50_000, 10_000),
    label_ranges=(20, 100),
    python_names=("cifar-100-python.tar.gz", "cifar-100-python"),
    class_names=tuple(str(k) for k in range(100)),
)


class Arrays(NamedTuple):
    """One of the two CIFAR sets as arrays.

    Attributes:
      train_images: `[n, 32, 32, 3]` uint8.
      train_labels: `[n]` int32.
      test_images: `[m, 32, 32, 3]` uint8.
      test_labels: `[m]` int32.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def find(form: Format, data_dir: pathlib.Path) -> pathlib.Path | None:
    """What lies in `data_dir`: the archive, else a folder with one of the files; None if neither."""
    if data_dir.is_file() or (data_dir / form.archive).is_file():
        return data_dir if data_dir.is_file() else data_dir / form.archive
    places = (data_dir / form.folder, data_dir)
    return next((p for p in places if any((p / file).is_file() for file in form.files)), None)


def missing(form: Format, data_dir: pathlib.Path | None) -> str:
    """The error for a `data_dir` that holds nothing to read: what is needed, and where to get it."""
    there = [n for n in form.python_names if data_dir is not None and (data_dir / n).exists()]
    found = f" {there[0]} is the version with pickles, which is not read." if there else ""
    where = "no data_dir is given" if data_dir is None else f"{data_dir} has none"
    return (
        f"{form.title} needs {form.archive} (the BINARY version) or its files "
        f"{', '.join(form.files)}; {where}.{found} Get it from "
        f"https://www.cs.toronto.edu/~kriz/{form.archive} and give its folder as data_dir."
    )


def read(form: Format, source: pathlib.Path, *, verify_checksum: bool = False) -> Arrays:
    """Reads a set.

    Args:
      form: Which set.
      source: The archive, or the folder with its files.
      verify_checksum: Compare the archive with the published checksum.

    Raises:
      ValueError: A file is missing, truncated or damaged, or is not of this set; or a checksum is
        wanted and there is none, or another one. The message names the file.
    """
    if source.is_file():
        if verify_checksum:
            check_md5(source, form.md5)
        contents = _read_archive(form, source)
    elif verify_checksum:
        raise ValueError(
            f"{source}: there is no published checksum of the unpacked files: give the folder of "
            f"{form.archive}, or leave verify_checksums out."
        )
    else:
        contents = _read_folder(form, source)
    parsed = {file: _parse(form, source / file, contents[file]) for file in form.files}
    _check_sizes(form, source, {file: len(labels) for file, (_, labels) in parsed.items()})
    images, labels = zip(*(parsed[file] for file in form.train_files), strict=True)
    return Arrays(np.concatenate(images), np.concatenate(labels), *parsed[form.test_file])


def check_md5(path: pathlib.Path, expected: str) -> None:
    """Raises ValueError unless the file's MD5 checksum is the expected one."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise ValueError(
            f"{path}: MD5 {found}, published is {expected}: it is damaged or another version; "
            "download it again."
        )


def _read_folder(form: Format, folder: pathlib.Path) -> dict[str, bytes]:
    lacks = [file for file in form.files if not (folder / file).is_file()]
    if lacks:
        raise ValueError(
            f"{folder}: {form.title} needs {', '.join(lacks)} too: unpack {form.archive} again."
        )
    return {file: (folder / file).read_bytes() for file in form.files}


def _read_archive(form: Format, path: pathlib.Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    others = []
    try:
        with tarfile.open(path, "r|*") as tar:
            for number, member in enumerate(tar):
                if number >= _MAX_MEMBERS or member.size > MAX_MEMBER_BYTES:
                    raise ValueError(f"{path}: {member.name} is too much: it is another archive.")
                folder, _, file = member.name.removeprefix("./").rpartition("/")
                if folder != form.folder or file not in form.files:
                    others.append(member.name)
                    continue
                if not member.isreg() or file in contents:
                    raise ValueError(
                        f"{path}: {member.name} is a link or is there twice: download it again."
                    )
                contents[file] = tar.extractfile(member).read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): download it again.") from error
    lacks = [file for file in form.files if file not in contents]
    if lacks:
        shown = ", ".join(others[:3]) or "nothing else"
        raise ValueError(
            f"{path}: is not {form.archive}: it lacks {form.folder}/{lacks[0]} and holds {shown}: "
            f"give the archive of {form.title}."
        )
    return contents


def _check_sizes(form: Format, source: pathlib.Path, found: dict[str, int]) -> None:
    """A set of one's own may have any size, but one with a file of the published size has it in all."""
    train, test = form.records
    published = dict.fromkeys(form.train_files, train) | {form.test_file: test}
    wrong = [file for file in form.files if found[file] != published[file]]
    if 0 < len(wrong) < len(form.files):
        raise ValueError(
            f"{source / wrong[0]}: holds {found[wrong[0]]} images and the published file "
            f"{published[wrong[0]]}, as others here do: it is truncated; unpack {form.archive} again."
        )


def _parse(form: Format, path: pathlib.Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    record = len(form.label_ranges) + _PIXELS
    if not content or len(content) % record:
        raise ValueError(
            f"{path}: {len(content)} bytes are no whole number of {form.title}'s records of "
            f"{record} bytes: it is truncated or of another set."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    for place, values in enumerate(form.label_ranges):
        labels = records[:, place]
        if labels.max() >= values:
            raise ValueError(
                f"{path}: label {labels.max()} in record {labels.argmax()}, expected 0 to "
                f"{values - 1}: it is damaged or of another set."
            )
    pixels = records[:, len(form.label_ranges) :].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels.astype(np.int32)
