"""CIFAR's binary files: true bytes to the exact pixel, and every kind of damage by name."""

import dataclasses
import gzip
import hashlib
import io
import pathlib
import struct
import tarfile
import tempfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccl_jax.data import cifar, datasets

RNG = np.random.default_rng(0)
FOLDER = "cifar-10-batches-bin"
FILES = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]


def records(labels, superclasses=None):
    """Records as the format's description has them, and the images `[n, 32, 32, 3]` in them."""
    images = RNG.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    content = b""
    for k, label in enumerate(labels):
        content += struct.pack("B", superclasses[k]) if superclasses is not None else b""
        content += struct.pack("B", label)
        for channel in range(3):  # red, green, blue
            for row in range(32):
                content += images[k, row, :, channel].tobytes()
    return content, images


@pytest.fixture
def cifar10():
    """The files of a tiny CIFAR-10, and its images."""
    made = {file: records([k, (k + 4) % 10, 9]) for k, file in enumerate(FILES)}
    return {file: m[0] for file, m in made.items()}, [m[1] for m in made.values()]


def check_cifar10(data_dir, images):
    dataset = datasets.load("cifar10", data_dir)
    np.testing.assert_array_equal(dataset.train_images, np.concatenate(images[:5]))
    np.testing.assert_array_equal(dataset.test_images, images[5])
    labels = [0, 4, 9, 1, 5, 9, 2, 6, 9, 3, 7, 9, 4, 8, 9]
    np.testing.assert_array_equal(dataset.train_labels, labels)
    np.testing.assert_array_equal(dataset.test_labels, [5, 9, 9])
    assert dataset.class_names[3] == "cat" and dataset.mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.parametrize("prefix", ["", "./"])
def test_archive_to_exact_pixels(tmp_path, write_tar, cifar10, prefix):
    files, images = cifar10
    members = {f"{prefix}{FOLDER}/{name}": content for name, content in files.items()}
    members[f"{prefix}{FOLDER}/batches.meta.txt"] = b"airplane\n"
    path = write_tar(tmp_path / "cifar-10-binary.tar.gz", members)
    check_cifar10(tmp_path, images)
    check_cifar10(path, images)


@pytest.mark.parametrize("below", [FOLDER, "."])
def test_unpacked_files_to_exact_pixels(tmp_path, cifar10, below):
    files, images = cifar10
    (tmp_path / below).mkdir(exist_ok=True)
    for name, content in files.items():
        (tmp_path / below / name).write_bytes(content)
    check_cifar10(tmp_path, images)
    (tmp_path / below / "data_batch_4.bin").unlink()
    with pytest.raises(ValueError, match=r"needs data_batch_4\.bin too: unpack"):
        datasets.load("cifar10", tmp_path)


def test_cifar100_takes_the_fine_label(tmp_path, write_tar):
    train, images = records([99, 0, 42], superclasses=[19, 0, 7])
    test, _ = records([5], superclasses=[1])
    members = {"cifar-100-binary/train.bin": train, "cifar-100-binary/test.bin": test}
    path = write_tar(tmp_path / "cifar-100-binary.tar.gz", members)
    dataset = datasets.load("cifar100", tmp_path)
    np.testing.assert_array_equal(dataset.train_images, images)
    np.testing.assert_array_equal(dataset.train_labels, [99, 0, 42])
    assert dataset.num_classes == 100 and dataset.std == (0.2675, 0.2565, 0.2761)

    path.rename(tmp_path / "cifar-10-binary.tar.gz")
    with pytest.raises(ValueError, match=r"is not cifar-10-binary\.tar\.gz: .*holds cifar-100-bin"):
        datasets.load("cifar10", tmp_path)
    write_tar(path, members | {"cifar-100-binary/train.bin": b"\x14" + train[1:]})
    with pytest.raises(ValueError, match=r"train\.bin: label 20 in record 0, expected 0 to 19"):
        datasets.load("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are no whole number"),
        (bytes(3073 * 2 - 1), "6145 bytes are no whole number of CIFAR-10's records of 3073"),
        (bytes(3073) + b"\x0a" + bytes(3072), "label 10 in record 1, expected 0 to 9"),
    ],
)
def test_damaged_file_is_named(tmp_path, cifar10, content, message):
    for name, good in cifar10[0].items():
        (tmp_path / name).write_bytes(good)
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: " + message):
        datasets.load("cifar10", tmp_path)


def test_a_whole_set_with_a_file_cut_between_records_is_noticed(tmp_path):
    image = bytes(3073)
    for name in FILES:
        (tmp_path / name).write_bytes(10_000 * image)
    (tmp_path / "data_batch_2.bin").write_bytes(9_999 * image)
    with pytest.raises(ValueError, match=r"data_batch_2\.bin: holds 9999 images .* truncated"):
        datasets.load("cifar10", tmp_path)


def test_damaged_archives(tmp_path, write_tar, cifar10, monkeypatch):
    path = tmp_path / "cifar-10-binary.tar.gz"
    members = {f"{FOLDER}/{name}": content for name, content in cifar10[0].items()}
    write_tar(path, members)
    whole = path.read_bytes()
    for content in (whole[:5000], b"<html>not found</html>", whole[:100] + bytes(50) + whole[150:]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"binary\.tar\.gz: cannot be read .*download it again"
        ):
            datasets.load("cifar10", tmp_path)

    link = tarfile.TarInfo(f"{FOLDER}/data_batch_1.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_tar(path, members | {link.name: link})
    with pytest.raises(ValueError, match=r"data_batch_1\.bin is a link or is there twice"):
        datasets.load("cifar10", tmp_path)
    write_tar(path, members | {f"./{FOLDER}/test_batch.bin": b"again"})
    with pytest.raises(ValueError, match=r"test_batch\.bin is a link or is there twice"):
        datasets.load("cifar10", tmp_path)

    monkeypatch.setattr(cifar, "MAX_MEMBER_BYTES", 10_000)
    write_tar(path, members | {"bomb": bytes(10_001)})
    with pytest.raises(ValueError, match="bomb is too much"):
        datasets.load("cifar10", tmp_path)


def test_missing_files_and_pickles(tmp_path):
    with pytest.raises(ValueError, match="no data_dir is given"):
        datasets.load("cifar10")
    with pytest.raises(ValueError, match="nowhere: data_dir does not exist"):
        datasets.load("cifar10", tmp_path / "nowhere")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"is the version with pickles, which is not read.*toronto"
    ):
        datasets.load("cifar10", tmp_path)


def test_checksums(tmp_path, write_tar, cifar10, monkeypatch):
    files, _ = cifar10
    path = write_tar(
        tmp_path / "cifar-10-binary.tar.gz", {f"{FOLDER}/{n}": c for n, c in files.items()}
    )
    with pytest.raises(ValueError, match="published is c32a1d4ab5d03f1284b67883e8d87530"):
        datasets.load("cifar10", tmp_path, verify_checksums=True)
    own = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "CIFAR10", dataclasses.replace(cifar.CIFAR10, md5=own))
    assert len(datasets.load("cifar10", tmp_path, verify_checksums=True).test_labels) == 3
    path.unlink()
    (tmp_path / "test_batch.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="no published checksum of the unpacked files"):
        datasets.load("cifar10", tmp_path, verify_checksums=True)
    with pytest.raises(ValueError, match="digits: verify_checksums is for fmnist, cifar10"):
        datasets.load("digits", verify_checksums=True)


# Two files with a record each, so that a fuzzed one is read in no time.
SMALL = dataclasses.replace(cifar.CIFAR10, train_files=("data_batch_1.bin",))
RECORD = bytes([7]) + bytes(range(256)) * 12


def packed(members) -> bytes:
    """A tar file with members (name, type, link, content), not compressed."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, link, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


WHOLE = packed((f"{FOLDER}/{f}", tarfile.REGTYPE, "", RECORD) for f in SMALL.files)


def read_or_value_error(source: pathlib.Path) -> None:
    """Whatever lies there is read as images, or named in a ValueError; nothing is written."""
    before = sorted(source.parent.rglob("*"))
    try:
        arrays = cifar.read(SMALL, source)
    except ValueError as error:
        assert str(source) in str(error) and "\n" not in str(error)
    else:
        assert arrays.train_images.shape[1:] == (32, 32, 3)
        assert len(arrays.train_images) == len(arrays.train_labels) > 0
        assert arrays.train_labels.min() >= 0 and arrays.train_labels.max() < 10
    assert sorted(source.parent.rglob("*")) == before


def read_archive(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "cifar-10-binary.tar.gz"
        path.write_bytes(content)
        read_or_value_error(path)


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(0, 3 * 3073 + 1) | st.sampled_from([3072, 3073, 3074, 6146]),
    changes=st.lists(st.tuples(st.sampled_from([0, 1, 3072, 3073]), st.integers(0, 255))),
)
def test_any_records_are_images_or_a_value_error(size, changes):
    content = bytearray(RECORD * 4)
    for position, byte in changes:
        content[position] = byte
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name) / FOLDER
        folder.mkdir()
        (folder / "data_batch_1.bin").write_bytes(content[:size])
        (folder / "test_batch.bin").write_bytes(RECORD)
        read_or_value_error(folder)


@settings(deadline=None, max_examples=150)
@given(
    pack=st.sampled_from([bytes, lambda b: gzip.compress(b, mtime=0)]),
    keep=st.floats(0, 1) | st.just(1.0),
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=4),
    header=st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=4),
    tail=st.binary(max_size=8),
)
def test_mutated_archives_are_images_or_a_value_error(pack, keep, changes, header, tail):
    plain = bytearray(WHOLE)
    for position, byte in header:
        plain[position] = byte
    content = bytearray(pack(bytes(plain)))
    for position, byte in changes:
        content[position % len(content)] = byte
    read_archive(bytes(content[: round(keep * len(content))]) + tail)


@settings(deadline=None, max_examples=60)
@given(start=st.sampled_from([b"", b"\x1f\x8b\x08\x00", b"BZh9", WHOLE[:512]]), rest=st.binary())
def test_random_archives_are_images_or_a_value_error(start, rest):
    read_archive(start + rest)


MEMBERS = st.tuples(
    st.sampled_from(["", "./", "/", "../", "../../", f"{FOLDER}/../", f"{FOLDER}/"]),
    st.sampled_from([f"{FOLDER}/data_batch_1.bin", "data_batch_1.bin", "test_batch.bin", "passwd"]),
    st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE,
                     tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]),
    st.sampled_from(["", "/etc/passwd", "../test_batch.bin", f"{FOLDER}/test_batch.bin"]),
    st.sampled_from([RECORD, RECORD[:-1], b""]),
)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(members=st.lists(MEMBERS, max_size=4), whole=st.booleans())
def test_links_and_paths_that_lead_elsewhere_write_and_read_nothing(members, whole):
    good = [(f"{FOLDER}/{f}", tarfile.REGTYPE, "", RECORD) for f in SMALL.files]
    members = [(place + file, *rest) for place, file, *rest in members]
    read_archive(packed(members + (good if whole else [])))


def test_a_bomb_takes_little_memory_and_time(tmp_path, monkeypatch):
    """64 MB of zeros, packed in less than one: as a member, instead of members and after them."""
    monkeypatch.setattr(cifar, "MAX_MEMBER_BYTES", 2**20)
    bomb = bytes(2**26)
    other = packed([("elsewhere", tarfile.REGTYPE, "", bomb)])
    one_of_ours = packed([(f"{FOLDER}/data_batch_1.bin", tarfile.REGTYPE, "", bomb)])
    contents = [gzip.compress(c, 1) for c in (other, one_of_ours, bomb, WHOLE + bomb)]
    path = tmp_path / "cifar-10-binary.tar.gz"
    for content in contents:
        path.write_bytes(content)
        tracemalloc.start()
        read_or_value_error(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 2**23
