"""The IDX reader: true files to the exact pixel, and every kind of damage."""

import gzip
import pathlib
import struct
import tempfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccl_jax.data import idx

VALUES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) * 10
# Two images of 3x4, spelled out byte by byte.
HEADER = b"\x00\x00\x08\x03\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00\x04"
CONTENT = HEADER + bytes(range(0, 240, 10))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_reads_exact_pixels(tmp_path, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(CONTENT))
    for shape in [(None, 3, 4), (2, 3, 4), (None, None, None)]:
        values = idx.read_idx(path, shape)
        assert values.dtype == np.uint8
        np.testing.assert_array_equal(values, VALUES)


DAMAGE = {
    "empty": (b"", "magic number 0x, expected 0x00000803"),
    "other type": (
        b"\x00\x00\x0d\x03" + CONTENT[4:],
        "magic number 0x00000d03, expected 0x00000803",
    ),
    "other rank": (b"\x00\x00\x08\x01" + CONTENT[4:], "magic number 0x00000801"),
    "not IDX": (b"<!DOCTYPE html><html></html>", "magic number 0x3c21444f"),
    "cut header": (CONTENT[:10], "ends inside the header"),
    "cut values": (CONTENT[:-1], "only 23 bytes of values, expected 24"),
    "no values": (HEADER, "only 0 bytes of values, expected 24"),
    "trailing bytes": (CONTENT + b"\x00", "more bytes of values, expected 24"),
    "other size": (CONTENT.replace(b"\x03\x00\x00\x00\x04", b"\x04\x00\x00\x00\x03"), "2 x 4 x 3"),
    "no images": (b"\x00\x00\x08\x03" + bytes(4) + HEADER[8:], "shape 0 x 3 x 4"),
    "huge": (b"\x00\x00\x08\x03\x7f\xff\xff\xff" + CONTENT[8:], "25769803764 bytes"),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path, damage, pack):
    content, message = DAMAGE[damage]
    path = tmp_path / "train-images"
    path.write_bytes(pack(content))
    with pytest.raises(ValueError, match="train-images.*" + message):
        idx.read_idx(path, (None, 3, 4))


def test_truncated_and_corrupt_gzip(tmp_path):
    path = tmp_path / "images.gz"
    whole = gzip.compress(CONTENT)
    wrong_checksum = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for content in (whole[:5], whole[:-10], whole[:-1], wrong_checksum, whole + b"tail"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"images\.gz: cannot be read"):
            idx.read_idx(path, (None, 3, 4))


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            idx.read_idx(path, (None,))


def test_memory_is_bounded_by_the_file_and_by_the_header(tmp_path):
    promises_much = tmp_path / "promises"
    promises_much.write_bytes(b"\x00\x00\x08\x01" + struct.pack(">I", 2**29) + bytes(100))
    holds_much = tmp_path / "bomb.gz"
    holds_much.write_bytes(gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 4) + bytes(2**25)))
    tracemalloc.start()
    for path in (promises_much, holds_much):
        with pytest.raises(ValueError, match="bytes of values"):
            idx.read_idx(path, (None,))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**23


def test_images_and_labels(tmp_path, write_idx):
    images = write_idx(tmp_path / "images.gz", VALUES)
    labels = write_idx(tmp_path / "labels", [9, 0])
    x, y = idx.read_images_and_labels(images, labels, (3, 4), 10)
    np.testing.assert_array_equal(x, VALUES[..., None])
    np.testing.assert_array_equal(y, [9, 0])
    assert (x.dtype, y.dtype) == (np.uint8, np.int32)

    with pytest.raises(ValueError, match=r"labels: label 9 at position 0, expected 0 to 8"):
        idx.read_images_and_labels(images, labels, (3, 4), 9)
    write_idx(labels, [9, 0, 1])
    with pytest.raises(
        ValueError, match=r"labels: holds 3 labels, but .*images\.gz holds 2 images"
    ):
        idx.read_images_and_labels(images, labels, (3, 4), 10)


@settings(deadline=None, max_examples=200)
@given(
    packed=st.booleans(),
    keep=st.integers(0, 60),
    changes=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 255)), max_size=4),
    tail=st.binary(max_size=8),
)
def test_mutated_files_give_an_array_or_a_value_error(packed, keep, changes, tail):
    content = bytearray(gzip.compress(CONTENT, mtime=0) if packed else CONTENT)
    for position, byte in changes:
        content[position % len(content)] = byte
    _read_or_value_error(bytes(content[:keep]) + tail)


@settings(deadline=None, max_examples=200)
@given(start=st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\x00", HEADER]), rest=st.binary())
def test_random_files_give_an_array_or_a_value_error(start, rest):
    _read_or_value_error(start + rest)


def _read_or_value_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "file"
        path.write_bytes(content)
        try:
            values = idx.read_idx(path, (None, None, None))
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert values.dtype == np.uint8 and values.ndim == 3 and values.size > 0
