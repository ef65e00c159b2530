"""Small sets in the true formats of the published ones, for runs that take seconds."""

import gzip
import io
import pathlib
import struct
import tarfile
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def cifar10(folder: pathlib.Path, a_batch: int = 16) -> None:
    """cifar-10-binary.tar.gz with five batches of so many images, and 20 for testing."""
    rng = np.random.default_rng(0)
    counts = {f"data_batch_{k}": a_batch for k in range(1, 6)} | {"test_batch": 20}
    record = lambda k: struct.pack("B", k % 10) + rng.bytes(3072)
    files = {name: b"".join(map(record, range(count))) for name, count in counts.items()}
    members = {f"cifar-10-batches-bin/{name}.bin": content for name, content in files.items()}
    _archive(folder / "cifar-10-binary.tar.gz", members)


def cifar100(folder: pathlib.Path, train: int = 160) -> None:
    """cifar-100-binary.tar.gz, in which a superclass is five classes, with 20 images for testing."""
    rng = np.random.default_rng(0)
    record = lambda k: struct.pack("BB", k % 100 // 5, k % 100) + rng.bytes(3072)
    files = {"train": train, "test": 20}
    content = {name: b"".join(map(record, range(count))) for name, count in files.items()}
    members = {f"cifar-100-binary/{name}.bin": whole for name, whole in content.items()}
    _archive(folder / "cifar-100-binary.tar.gz", members)


def fashion_mnist(folder: pathlib.Path, train: int = 400) -> None:
    """Fashion-MNIST's own files, two of them gzipped: digits, scaled up to 28x28, 60 for testing."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.kron(pixels.reshape(-1, 8, 8) * 15, np.ones((3, 3)))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    labels = labels.astype(np.uint8)

    def write(name: str, values: np.ndarray, zipped: bool) -> None:
        magic = bytes([0, 0, 8, values.ndim])
        content = magic + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)

    write("train-images-idx3-ubyte", images[:train], zipped=True)
    write("train-labels-idx1-ubyte", labels[:train], zipped=True)
    write("t10k-images-idx3-ubyte", images[train : train + 60], zipped=False)
    write("t10k-labels-idx1-ubyte", labels[train : train + 60], zipped=False)


def image_folder(root: pathlib.Path, classes: Sequence[str], train: int, test: int) -> None:
    """train/<class>/ and val/<class>/ with so many JPEGs each, 40 pixels high and 36 wide."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (40, 36, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.jpg")


def _archive(path: pathlib.Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
