"""Measurements as JSON lines, with what they were made on."""

import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from ccl_jax.runs.directory import made_with, plain
from experiments.benchmark.workload import Workload

Log = Callable[..., None]


def make_log(values: flags.FlagValues) -> Log:
    """`log(kind, work, **fields)` appends one JSON line.

    Raises:
      ValueError: The file cannot be written.
    """
    path = writable(values.output)
    about = {
        "platform": jax.default_backend(),
        **machine(),
        "repeats": values.repeats,
        "steps": values.steps,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        # Results are shared: without the path of this checkout.
        "made_with": made_with() | {"command": ["python -m experiments.benchmark", *sys.argv[1:]]},
    }

    def log(kind: str, work: Workload, **fields: Any) -> None:
        what = {
            "kind": kind,
            "model": work.model,
            "norm": work.norm,
            "dtype": work.dtype,
            "topology": work.topology.name,
            "agents": work.topology.agents,
            "batch_size": work.batch_size,
            "devices": work.plan.devices,
            "spmd": work.plan.form,
        }
        append(path, what | fields | about)

    return log


def writable(name: str) -> Path:
    """The file of this name, which is made if need be.

    Raises:
      ValueError: The file cannot be written.
    """
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); give another --output"
        ) from error
    return path


def append(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes one JSON line."""
    with path.open("a") as file:
        file.write(json.dumps(plain(fields)) + "\n")


def machine() -> dict[str, Any]:
    """When and on which processor something is measured."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
    }


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
