"""Reads recorded runs (.npz) and makes sure that all a replay needs is there and fits together.

Nothing in a recording is executed. Whatever is wrong with one is a ValueError that names it.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Trace = Mapping[str, np.ndarray]
NUMBER = (int, float)


class Replayer(NamedTuple):
    """A kind of recording that can be replayed.

    Attributes:
      fits: Whether a recording is of this kind.
      replay: Its replay; the result has `passed`, and is printed. A ValueError says why there is none.
    """

    fits: Callable[[Trace], bool]
    replay: Callable[[Trace], dict[str, Any]]


def method(trace: Trace) -> str:
    """The method that a recording's config names; "" where it names none that can be read."""
    try:
        return read_config(trace, {"method": str})["method"]
    except ValueError:
        return ""


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of a recording.

    Args:
      path: An .npz file.

    Raises:
      ValueError: It is not there, damaged, or lacks a configuration.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            trace = dict(arrays)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; --trace takes a recorded .npz file") from None
    except Exception as error:  # A damaged archive fails in as many ways as it has parts.
        raise ValueError(f"{path} is not a readable .npz recording: {error}") from None
    if "config" not in trace:
        raise ValueError(f"{path} has no entry 'config'; it is not a recording of a run")
    return trace


def read_config(trace: Trace, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Reads the configuration.

    Args:
      trace: The arrays of a recording; `config` is a JSON object.
      kinds: Entries that it must have, and their types.

    Raises:
      ValueError: It is no JSON object, or an entry is missing or of another type.
    """
    try:
        config = json.loads(np.asarray(trace["config"]).item())
    except (TypeError, ValueError) as error:
        raise ValueError(f"the recording's config is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"the recording's config is {config!r}; it must be a JSON object")
    for name, kind in kinds.items():
        if not isinstance(config.get(name), kind):
            raise ValueError(
                f"the recording's config has {name} = {config.get(name, 'missing')!r}; it needs "
                f"all of {', '.join(kinds)}, each of its type"
            )
    return config


def check_arrays(
    trace: Trace, axes: Mapping[str, Sequence[str | int]], integers: Sequence[str] = ()
) -> dict[str, int]:
    """Makes sure that arrays are there, hold numbers and fit each other.

    Args:
      trace: The arrays of a recording.
      axes: For each array its axes: a name, of one length wherever it stands, or a length.
      integers: The arrays that hold integers; the others may hold any numbers.

    Returns:
      The length of every named axis.

    Raises:
      ValueError: An array is missing, empty, of another kind or shape.
    """
    missing = [name for name in axes if name not in trace]
    if missing:
        raise ValueError(f"the recording lacks {', '.join(missing)}; it cannot be replayed")
    lengths: dict[str | int, int] = {}
    for name, wanted in axes.items():
        array = trace[name]
        fits = array.ndim == len(wanted) and array.size > 0
        fits &= array.dtype.kind in ("iu" if name in integers else "biuf")
        for axis, length in zip(wanted, array.shape, strict=False):
            known = axis if isinstance(axis, int) else lengths.setdefault(axis, length)
            fits &= known == length
        if not fits:
            shape = ", ".join(f"{a} {lengths[a]}" if a in lengths else str(a) for a in wanted)
            raise ValueError(
                f"the recording's {name} is {array.dtype} {array.shape}; it must be "
                f"{'integers' if name in integers else 'numbers'} [{shape}]"
            )
    return lengths
