"""Reads what was written for TensorBoard."""

import struct
from pathlib import Path


def scalars(file: Path) -> dict[str, list[tuple[int, float]]]:
    """Of a TensorBoard file, name -> [(step, value)]; a record is size, check, event, check."""
    from tensorboardX.proto.event_pb2 import Event

    content, found = file.read_bytes(), {}
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        event, content = Event.FromString(content[12 : 12 + size]), content[16 + size :]
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found
