"""Recorded runs with something in them changed, which a replay must notice."""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

Trace = dict[str, np.ndarray]


def changed(
    trace: Trace,
    entries: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType({}),
    **config: Any,
) -> Trace:
    """A recording with other settings, and with some of its arrays put through functions."""
    settings = json.loads(str(trace["config"])) | config
    arrays = {name: change(trace[name]) for name, change in entries.items()}
    return trace | {"config": np.array(json.dumps(settings))} | arrays
