"""Whole runs, from the command to the table: how many seconds, and what they go into.

Each run is a main of this repository in a process of its own, first with an empty folder of compiled
programs, then again with what the first has left there. Parts are told apart by what a run shows:
everything is imported, then it says on stderr that it compiles the step, and `summary.json` has the
seconds of compilation, steps and evaluation (with the compilation of that).
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from ccl_jax.data import cifar
from ccl_jax.runs.directory import RunDirectory
from experiments.benchmark import record, tables

CCL = ("--algorithm=qg-dsgdm-n", "--lambda_m=0.1", "--lambda_d=0.1")

# Seconds of a run, in their order; "rest" is checkpoints, figures, the table and the end of Python.
PARTS = ("start", "setup", "compile", "steps", "evaluation", "rest")

# `python -m MODULE FLAGS`, which also says when it has imported everything.
_PROGRAM = """
import importlib, runpy, sys, time
stamp, module, *sys.argv[1:] = sys.argv[1:]
importlib.import_module(module)
with open(stamp, "w") as file:
    file.write(repr(time.time()))
del sys.modules[module]  # Its functions and imports stay; it runs as the main.
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

# What a run says first when it compiles its step.
_COMPILING = b"compiling "


class Run(NamedTuple):
    """A run to be measured.

    Attributes:
      name: Of its data and model.
      module: Its main.
      flags: On its command line.
    """

    name: str
    module: str
    flags: tuple[str, ...]


class LeftOut(ValueError):
    """A run cannot be made here; says why."""


def measure_all(values: flags.FlagValues) -> None:
    """Measures all runs, prints a table and writes JSON lines.

    Args:
      values: Of the benchmark's command line.

    Raises:
      ValueError: The output cannot be written.
      ChildProcessError: A run failed.
    """
    output, rows = record.writable(values.output), []
    with tempfile.TemporaryDirectory() as folder:
        for run in runs(Path(folder), values.data_dir):
            try:
                for cache, fields in twice(run, Path(folder, run.module)):
                    record.append(output, {"kind": "whole", "cache": cache} | fields)
                    shown = tables.cells(fields, _COLUMNS)
                    rows.append((f"{run.name}, {cache} cache", *shown))
            except LeftOut as error:
                print(f"left out: {run.name}: {error}", file=sys.stderr)
    if not rows:
        return
    print(f"seconds from the command to the table; {os.cpu_count()} cores of {record.cpu_name()}")
    print(tables.table(("run", *(head for head, *_ in _COLUMNS)), rows))


def runs(folder: Path, data_dir: str | None) -> list[Run]:
    """CCL on three sets of data; images of CIFAR-10's kind are written into `folder`.

    Args:
      folder: A temporary one.
      data_dir: Where Fashion-MNIST lies, if the system has no place for it.
    """
    place = () if data_dir is None else (f"--data_dir={data_dir}",)
    write_cifar10(folder / "cifar10")
    return [
        Run("digits, digits-cnn, 60 epochs", "experiments.digits", CCL),
        Run(
            "Fashion-MNIST, LeNet-5, 2 epochs",
            "experiments.fmnist",
            (*CCL, "--epochs=2", *place),
        ),
        Run(
            "noise as CIFAR-10, ResNet-20, 1 epoch",
            "experiments.cifar10",
            (*CCL, "--epochs=1", f"--data_dir={folder / 'cifar10'}"),
        ),
    ]


def write_cifar10(folder: Path, images: int = 512) -> None:
    """Noise in the files of CIFAR-10's binary version, `images` in each: only time counts here.

    Args:
      folder: Is made.
      images: In each of the six files; the original has 10,000.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in cifar.CIFAR10.files:
        pixels = rng.integers(0, 256, (images, 3 * 32 * 32), np.uint8)
        labels = (np.arange(images) % 10).astype(np.uint8)
        (folder / name).write_bytes(np.column_stack([labels, pixels]).tobytes())


def twice(run: Run, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields "empty" and "filled" with the seconds of the run with such a folder of programs.

    Args:
      run: What to measure.
      folder: Is made; for the run's files and its compiled programs.
    """
    folder.mkdir(parents=True)
    for cache in ("empty", "filled"):
        yield cache, measure(run, folder / cache, folder / "programs")


def measure(run: Run, workdir: Path, programs: Path) -> dict[str, Any]:
    """Makes a run.

    Args:
      run: What to measure.
      workdir: For its files.
      programs: For its compiled programs.

    Returns:
      What a JSON line has: seconds in total, of processor time, of each part, and until the first step.

    Raises:
      LeftOut: It cannot be made with what is here, such as its data.
      ChildProcessError: It failed.
    """
    stamp = workdir.with_suffix(".stamp")
    given = [*run.flags, f"--workdir={workdir}", f"--compile_cache={programs}"]
    command = [sys.executable, "-c", _PROGRAM, str(stamp), run.module, *given]
    before, began = _cpu_seconds(), time.time()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        said, compiling = _read(process)
    ended = time.time()
    if process.returncode:
        error = said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        kind = LeftOut if process.returncode == 2 else ChildProcessError
        raise kind(error[0])
    main, summary = float(stamp.read_text()), RunDirectory(workdir).summary()
    known = {
        "start": main - began,
        "setup": compiling - main,
        "compile": summary["seconds_compile"],
        "steps": summary["seconds_training"],
        "evaluation": summary["seconds_evaluation"],
    }
    parts = known | {"rest": ended - began - sum(known.values())}
    return {
        "run": run.name,
        "seconds_total": ended - began,
        "cpu_seconds": _cpu_seconds() - before,
        **{f"seconds_{name}": parts[name] for name in PARTS},
        "seconds_first_step": parts["start"] + parts["setup"] + parts["compile"],
        **{name: summary[name] for name in ("model", "dataset", "agents", "epochs", "steps")},
        "device": summary["device"],
        **record.machine(),
        # Results are shared: without the paths of this machine.
        "made_with": summary["made_with"] | {"command": _public(run)},
    }


def _read(process: subprocess.Popen) -> tuple[bytes, float]:
    """All of a run's stderr, and when it began to compile its step (`time.time`; 0 if never)."""
    said, compiling = b"", 0.0
    while some := os.read(process.stderr.fileno(), 1 << 16):
        said += some
        if not compiling and _COMPILING in said:
            compiling = time.time()
    return said, compiling


def _cpu_seconds() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _public(run: Run) -> list[str]:
    hide = lambda flag: "--data_dir=DIR" if flag.startswith("--data_dir=") else flag
    return ["python", "-m", run.module, *map(hide, run.flags)]


_COLUMNS = (
    ("total", "seconds_total", 1, ".1f"),
    ("CPU", "cpu_seconds", 1, ".1f"),
    *((name, f"seconds_{name}", 1, ".1f") for name in PARTS),
    ("to the first step", "seconds_first_step", 1, ".1f"),
)
