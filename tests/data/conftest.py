"""Small files in the true on-disk formats, made by the tests themselves."""

import gzip
import io
import json
import pathlib
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

TFDS_ZIP = pathlib.Path(__file__).parents[1] / "fixtures" / "tfds.zip"


def idx_bytes(values: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes, written by hand from the format's description."""
    header = struct.pack(">BBBB", 0, 0, 0x08, values.ndim)
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def write_idx():
    """A function that writes values as an IDX file, gzipped if the path ends in .gz."""

    def write(path, values):
        content = idx_bytes(np.asarray(values, np.uint8))
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return write


@pytest.fixture
def write_tar():
    """A function that writes {member name: bytes or TarInfo} as a .tar.gz."""

    def write(path, members):
        with tarfile.open(path, "w:gz") as tar:
            for name, content in members.items():
                info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
                if content is not info:
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                else:
                    tar.addfile(info)
        return path

    return write


@pytest.fixture
def write_folder():
    """A function that writes train/<class>/ and val/<class>/ with PNGs, and returns their pixels."""

    def write(root, classes=("ant", "bee"), train=3, val=2, size=(12, 10), seed=0):
        rng = np.random.default_rng(seed)
        pixels = {}
        for split, count in (("train", train), ("val", val)):
            for name in classes:
                folder = root / split / name
                folder.mkdir(parents=True)
                for k in range(count):
                    image = rng.integers(0, 256, (*size, 3), np.uint8)
                    Image.fromarray(image).save(folder / f"{k}.png")
                    pixels[split, name, k] = image
        return pixels

    return write


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    """A data_dir with two tiny sets that TFDS has prepared; see tests/fixtures/make_tfds.py."""
    folder = tmp_path_factory.mktemp("tfds")
    with zipfile.ZipFile(TFDS_ZIP) as file:
        file.extractall(folder)
    return folder


@pytest.fixture
def write_tfds():
    """A function that writes images as TFDS prepares them: records, and what describes them."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    def record(image, label):
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "PNG")
        feature = tf_feature_pb2.Feature
        features = {
            "image": feature(bytes_list=tf_feature_pb2.BytesList(value=[file.getvalue()])),
            "label": feature(int64_list=tf_feature_pb2.Int64List(value=[label])),
        }
        features = tf_feature_pb2.Features(feature=features)
        return tf_example_pb2.Example(features=features).SerializeToString()

    def write(data_dir, name, splits, classes, shape, shards=1):
        """`splits` is {split: [(pixels, label)]}, `shape` what TFDS says of the images."""
        folder = data_dir / name / "1.0.0"
        folder.mkdir(parents=True)
        infos = []
        for split, samples in splits.items():
            parts = [samples[k::shards] for k in range(shards)]
            for k, part in enumerate(parts):
                path = folder / f"{name}-{split}.array_record-{k:05d}-of-{shards:05d}"
                writer = ArrayRecordWriter(str(path), "group_size:1")
                for sample in part:
                    writer.write(record(*sample))
                writer.close()
            template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
            lengths = [str(len(part)) for part in parts]
            infos += [{"filepathTemplate": template, "name": split, "shardLengths": lengths}]
        info = {"fileFormat": "array_record", "name": name, "splits": infos, "version": "1.0.0"}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        place = "tensorflow_datasets.core.features."
        image = {
            "image": {"dtype": "uint8", "shape": {"dimensions": [str(n) for n in shape]}},
            "pythonClassName": place + "image_feature.Image",
        }
        label = {
            "classLabel": {"numClasses": str(len(classes))},
            "pythonClassName": place + "class_label_feature.ClassLabel",
        }
        features = {
            "featuresDict": {"features": {"image": image, "label": label}},
            "pythonClassName": place + "features_dict.FeaturesDict",
        }
        (folder / "features.json").write_text(json.dumps(features))
        (folder / "label.labels.txt").write_text("\n".join(classes) + "\n")
        return folder

    return write
