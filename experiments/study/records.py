"""What is kept of a run for tables and figures: one small JSON object, with curves as columns.

    id         of its settings, `catalogue.identity`
    settings   those that differ from a plain Config
    seed       of all that is random
    classes    how many there are, which makes chance; older records have none
    status     "done", or "diverged" with `step` and `reason`
    summary    numbers at the end, or those of the last epoch before divergence
    rows       name -> list over the evaluated epochs
    cost       floating-point operations and exchanges of a round, for `wall_clock`
    samples_by_agent_and_class
    made_with  versions, device, processor, settings of JAX, commit and date

A results directory has runs/ID/ (working files of runs, not kept for good) and STUDY-DATA/runs.jsonl
(the records of a study). A run that is in any of them is not run again.
"""

import contextlib
import datetime
import functools
import json
import math
import os
import platform
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from ccl_jax.runs import inputs, runner, seeds
from ccl_jax.runs.config import Config
from ccl_jax.runs.directory import PACKAGES, plain
from ccl_jax.training.loop import Diverged
from experiments.report import wall_clock
from experiments.study import catalogue

Record = dict[str, Any]

_MADE_WITH = (
    "python",
    *PACKAGES,
    "device",
    "git_commit",
    "own_code",
    "instruction_set",
    "jax_settings",
    "xla_flags",
)

# Compiled programs of earlier runs stay in memory until they are let go.
_RUNS_BETWEEN_CLEARING = 20
_runs_done = 0


def run(config: Config, results: Path) -> Record:
    """Runs some settings, or goes on with them, or reads what they gave before.

    A run that diverges has a record like any other.

    Args:
      config: The settings; where files go is decided here.
      results: The results directory.

    Raises:
      checkpoints.Stopped: A signal asked to stop; the next call goes on.
      OSError, ValueError: As `runner.execute`.
    """
    if (record := _made(config, results)) is not None:
        return record
    prepared = _prepare(config, results)
    try:
        return _keep(prepared, runner.execute(prepared))
    except Diverged as error:
        return _keep(prepared, error)


def run_together(configs: Sequence[Config], results: Path) -> list[Record]:
    """`run` for settings that differ in their seed, as one program as far as they can be."""
    found = [_made(config, results) for config in configs]
    missing = [config for config, record in zip(configs, found, strict=True) if record is None]
    runs = [
        _prepare(config.replace(pack_seeds="yes", quiet=not config.progress), results)
        for config in missing
    ]
    results_of = seeds.execute(runs) if runs else []
    made = iter([_keep(*pair) for pair in zip(runs, results_of, strict=True)])
    return [next(made) if record is None else record for record in found]


def _made(config: Config, results: Path) -> Record | None:
    """The record that a run has left in its own directory, if any."""
    file = _folder(config, results) / "record.json"
    return _read(file) if file.exists() else None


def _read(file: Path) -> Record:
    """The record that a run has left in its own directory.

    Raises:
      ValueError: It is damaged.
    """
    try:
        return _record(file.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged: {error}; remove {file.parent}, and its run is made again"
        ) from error


def _record(text: bytes) -> Record:
    record = json.loads(text)
    if not isinstance(record, dict) or "id" not in record:
        raise ValueError("it is no record of a run")
    return record


def _folder(config: Config, results: Path) -> Path:
    return results / "runs" / catalogue.identity(config)


def _prepare(config: Config, results: Path) -> runner.Run:
    folder = _folder(config, results)
    config = config.replace(
        workdir=str(folder),
        resume=(folder / "config.json").exists(),
        compile_cache=str((results / ".cache").absolute()),
        figures=False,
    )
    return runner.prepare(config, _dataset(config))


def _keep(prepared: runner.Run, result: seeds.Result) -> Record:
    """Makes the record of a run, and lets go of its checkpoints."""
    global _runs_done
    config, directory = prepared.config, prepared.directory
    rows, summary, diverged = directory.read_metrics(), result, {}
    if isinstance(result, Diverged):
        summary = rows[-1]
        diverged = {"step": summary["step"], "reason": str(result)}
    made_with = directory.made_with()
    dataset = prepared.dataset
    record = {
        "id": catalogue.identity(config),
        "settings": catalogue.settings_of(config),
        "seed": config.seed,
        "classes": dataset.num_classes,
        "status": "diverged" if diverged else "done",
        **diverged,
        "summary": _numbers(summary, (*catalogue.SUMMARY, *catalogue.losses_recorded()))
        | _mean_losses(rows),
        "rows": _columns(rows),
        "cost": wall_clock.cost(config, dataset.num_classes, dataset.image_shape)._asdict(),
        "samples_by_agent_and_class": prepared.data.report["samples_by_agent_and_class"],
        "made_with": {key: made_with[key] for key in _MADE_WITH if key in made_with}
        | {"cpu": _processor(), "date": datetime.date.today().isoformat()},
    }
    directory.write_json("record.json", record)
    shutil.rmtree(directory.checkpoints, ignore_errors=True)
    _runs_done += 1
    if _runs_done % _RUNS_BETWEEN_CLEARING == 0:
        jax.clear_caches()
    return plain(record)


def known(results: Path) -> dict[str, Record]:
    """All records of a results directory, by id; those of a run's own files come first."""
    found = {}
    for file in sorted(results.glob("*/runs.jsonl")):
        found |= {record["id"]: record for record in read(file)}
    for file in results.glob("runs/*/record.json"):
        record = _read(file)
        found[record["id"]] = record
    return found


def read(file: Path) -> list[Record]:
    """The records of a study's runs.jsonl.

    A last line that was cut off, as by a full disk, is left out: its run is made again.

    Raises:
      ValueError: Another line is damaged.
    """
    *lines, rest = file.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_record(line))
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged in line {number}: {error}; remove this line, and its run is made "
                "again"
            ) from error
    with contextlib.suppress(ValueError):  # Whole, but for the end of the line.
        found.append(_record(rest))
    return found


def write(file: Path, found: Iterable[Record]) -> None:
    """Writes records, one a line, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text("".join(map(_line, found)))
    partial.replace(file)


def append(file: Path, record: Record) -> None:
    """Adds a record at the end, so that a study that is killed has what it has made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not file.read_bytes().endswith(b"\n"):
        write(file, read(file))
    with file.open("a") as out:
        out.write(_line(record))


def _line(record: Record) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def value(record: Record, name: str) -> Any:
    """A number of a record's summary, or a setting; None where it has neither.

    Settings that are not in the record have the value of `plan.default_of`.
    """
    if name in record["summary"]:
        return record["summary"][name]
    return record["settings"].get(name, catalogue.default_of(name))


_first_set = functools.lru_cache(maxsize=2)(inputs.first_set)


def _dataset(config: Config) -> Any:
    """A dataset is read once for many runs."""
    read_by = ("dataset", "data_dir", "image_size", "verify_checksums", "domain")
    return _first_set(Config(**{name: getattr(config, name) for name in read_by}))


@functools.cache
def _processor() -> str:
    """The host's processor and its number of cores."""
    name = platform.processor() or platform.machine()
    if (file := Path("/proc/cpuinfo")).exists():
        models = [line for line in file.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {os.cpu_count()} cores"


def _numbers(row: Record, names: Iterable[str]) -> Record:
    row = plain(row)  # What is not finite becomes None.
    return {name: _short(row[name]) for name in names if row.get(name) is not None}


def _mean_losses(rows: list[Record]) -> Record:
    """Feature losses over all epochs: at the end they are small whatever the data."""
    means = {}
    for name in catalogue.losses_recorded():
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            means[f"{name}_mean"] = _short(sum(values) / len(values))
    return means


def _columns(rows: list[Record]) -> dict[str, list[Any]]:
    """Curves of the evaluated epochs; what was never measured is left out."""
    rows = [row for row in rows if row.get("local_accuracy_mean") is not None]
    names = (*catalogue.CURVES, *catalogue.losses_recorded())
    columns = {name: [_short(row.get(name)) for row in rows] for name in names}
    return {k: v for k, v in columns.items() if any(x is not None for x in v)}


def _short(number: Any) -> Any:
    """Six significant digits: more than seeds agree on."""
    if isinstance(number, float) and math.isfinite(number):
        return float(f"{number:.6g}")
    return number
