"""Measurements as JSON lines, with what they were made on."""

import datetime
import json
import os
import platform
import sys
from collections.abc import Callable
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
    path = Path(values.output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); give another --output"
        ) from error
    about = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "platform": jax.default_backend(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
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
        with path.open("a") as file:
            file.write(json.dumps(plain(what | fields | about)) + "\n")

    return log


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
