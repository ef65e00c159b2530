"""Sets that TensorFlow Datasets has prepared as array_record files, read without TensorFlow.

`python -m experiments.prepare` prepares them. A prepared set lies in
<data_dir>/<name>/[<config>/]<version>/ with its description in dataset_info.json. TFDS writes into a
folder incomplete.* first; here every file is opened and its records counted besides, so that half of
a set is never taken for the whole.
"""

import dataclasses
import pathlib
import re

import numpy as np
from tqdm import tqdm

FORMAT = "array_record"
"""The file format that can be read by index, and without TensorFlow."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset under its name in TFDS's catalogue.

    Attributes:
      name: The dataset.
      configs: Its configurations that serve, best first; () where it has none.
      test_split: What its test images are called.
    """

    name: str
    configs: tuple[str, ...] = ()
    test_split: str = "test"

    @property
    def full_name(self) -> str:
        """Name and first configuration, as TFDS writes it."""
        return "/".join((self.name, *self.configs[:1]))


SOURCES = {
    "fmnist": Source("fashion_mnist"),
    "cifar10": Source("cifar10"),
    "cifar100": Source("cifar100"),
    "imagenette": Source(
        "imagenette", ("160px-v2", "320px-v2", "full-size-v2"), test_split="validation"
    ),
    "imagenette-full": Source("imagenette", ("full-size-v2",), test_split="validation"),
    "imagenet": Source("imagenet2012", test_split="validation"),
}
"""What our datasets are called there."""


class TfdsImages:
    """The encoded images of one split; an `ImageStore`.

    Args:
      builder: A builder of TFDS with the set's files.
      split: Name of the split.

    Raises:
      ValueError: A label is no class; the message names the record.
    """

    def __init__(self, builder, split: str) -> None:
        import tensorflow_datasets as tfds

        self._name = f"{builder.data_path}: {split}"
        self._records = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        # Labels lie beside the images, so all records are read once; for ImageNet that takes its time.
        title = f"labels of {self._name}"
        records = tqdm(self._records, title, unit="record", delay=_PATIENCE_SECONDS)
        self.labels = np.array([record["label"] for record in records], np.int32)
        classes = builder.info.features["label"].num_classes
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= classes))
        if len(wrong):
            raise ValueError(
                f"{self.name(wrong[0])}: label {self.labels[wrong[0]]}, expected 0 to {classes - 1}: "
                f"it is damaged; {_AGAIN}."
            )

    def read(self, index: int) -> bytes:
        """The encoded image of a record."""
        return self._records[index]["image"]

    def name(self, index: int) -> str:
        """The set's folder, the split and the record's number."""
        return f"{self._name} record {index}"


def find(source: Source, data_dir: pathlib.Path) -> pathlib.Path | None:
    """The folder of a prepared set, its newest version; None if there is none.

    Raises:
      ValueError: The preparation of the set was broken off, or a part of it is missing.
    """
    root = data_dir / source.name
    for folder in [root / config for config in source.configs] or [root]:
        versions = [p for p in folder.glob("*.*.*") if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
        whole = [path for path in versions if (path / "dataset_info.json").is_file()]
        if whole:
            return max(whole, key=lambda path: tuple(map(int, path.name.split("."))))
        broken = next(folder.glob("incomplete.*"), None)
        if broken is not None:
            raise ValueError(
                f"{broken}: the preparation of this set was broken off: remove it and run "
                "`python -m experiments.prepare` again."
            )
        if versions:
            raise ValueError(
                f"{versions[0]}: lacks dataset_info.json, so it is not whole: {_AGAIN}."
            )
    return None


def read(source: Source, folder: pathlib.Path) -> tuple[TfdsImages, TfdsImages, tuple[str, ...]]:
    """Opens a prepared set, after making sure that all of it is there.

    Args:
      source: Which set.
      folder: What `find` found.

    Returns:
      Training images, test images and the names of the classes.

    Raises:
      ValueError: The set is not complete, damaged, or in another file format; the message names the
        file.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        file_format = builder.info.file_format.file_suffix
    except Exception as error:  # Whatever its JSON and protobuf readers raise.
        raise ValueError(
            f"{folder}: is no set that TFDS has prepared ({error}): {_AGAIN}."
        ) from error
    if builder.info.name != source.name:
        raise ValueError(
            f"{folder}: holds the set {builder.info.name} and not {source.name}: {_AGAIN}."
        )
    if file_format != FORMAT:
        raise ValueError(
            f"{folder}: is in the format {file_format}, which needs TensorFlow to be read; prepare "
            f"it as {FORMAT} with `python -m experiments.prepare` in another data_dir."
        )
    for split in ("train", source.test_split):
        if split not in builder.info.splits:
            raise ValueError(f"{folder}: has no split {split}: {_AGAIN}.")
        info = builder.info.splits[split]
        for path, records in zip(info.filepaths, info.shard_lengths, strict=True):
            _check_shard(path, records)
    stores = [TfdsImages(builder, split) for split in ("train", source.test_split)]
    return *stores, tuple(builder.info.features["label"].names)


def _check_shard(path, records: int) -> None:
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except Exception as error:  # The reader's C++ exceptions have several types.
        raise ValueError(f"{path}: is missing or damaged ({error}): {_AGAIN}.") from error
    if found != records:
        raise ValueError(f"{path}: holds {found} records, expected {records}: {_AGAIN}.")


_AGAIN = "remove the set and run `python -m experiments.prepare` again"

_PATIENCE_SECONDS = 5  # What takes longer shows how far it is.
