"""Small files in the true on-disk formats, made by the tests themselves."""

import gzip
import struct

import numpy as np
import pytest


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
