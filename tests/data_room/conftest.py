"""Small files in the true on-disk formats, made by the tests themselves."""

import gzip
import io
import pathlib
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

TFDS_ZIP = pathlib.Path(__file__).parents[1] / "data" / "tfds.zip"


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
    """A data_dir with two tiny sets that TFDS has prepared; see tests/data/make_tfds.py."""
    folder = tmp_path_factory.mktemp("tfds")
    with zipfile.ZipFile(TFDS_ZIP) as file:
        file.extractall(folder)
    return folder
