"""Puts runs side by side: a table, a figure of their curves, and all their metrics in one CSV file.

    python -m experiments.compare runs/a runs/b runs/c --output=comparison.csv

Takes any run directories, of runs that have ended or not; of a directory that holds several runs, such
as a comparison of experiments.digits, all of them. The table has the settings that differ. The CSV file
has a line for each run and epoch, with those settings and all metrics. The figure goes beside it.
Megabytes are those an agent sent; seconds are of training, without compilation and evaluation.
"""

import csv
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from ccl_jax.names import shortest_ends
from ccl_jax.runs import plots
from ccl_jax.runs.config import Config
from ccl_jax.runs.directory import RunDirectory, plain
from ccl_jax.runs.settings import OUTPUT
from ccl_jax.runs.summary import text_table
from experiments import cli
from experiments.flag_values import FlagValues

# Settings that say where a run's files are and what it shows, and not what it computes or how fast.
_FIELDS = dataclasses.fields(Config)
_ASIDE = {f.name for f in _FIELDS if f.metadata["group"] == OUTPUT and f.metadata["may_differ"]}
_ASIDE |= {"data_dir", "coordinator", "process_id", "compile_cache", "verify_checksums"}
_OUTPUT = "comparison.csv"
# Characters of a line that a terminal shows without breaking it.
_WIDEST = 100
# Characters of a legend's line beside which the curves are still seen.
_LEGEND = 36


class Compared(NamedTuple):
    """A run as far as its directory tells.

    Attributes:
      name: What tells it from the others.
      settings: All of them.
      rows: Its metrics, one row an epoch.
      status: "done", "diverged", or how far it has come.
    """

    name: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    status: str

    def last(self, metric: str) -> float | None:
        """The last value of a metric; None where there is none."""
        known = (row[metric] for row in reversed(self.rows) if row.get(metric) is not None)
        return next(known, None)


def read(paths: Sequence[str | os.PathLike]) -> list[Compared]:
    """Reads run directories; of one that holds several runs, all of them.

    Raises:
      ValueError: One is no run, is damaged, or is given twice.
    """
    found: dict[Path, Path] = {}
    for path in (run for given in paths for run in _runs(Path(given))):
        if path.resolve() in found:
            raise ValueError(f"{path} is given twice; give each run once")
        found[path.resolve()] = path
    return [
        _read(RunDirectory(path), name)
        for path, name in zip(found.values(), shortest_ends(list(found)), strict=True)
    ]


def differing(runs: Sequence[Compared]) -> list[str]:
    """Names of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in _ASIDE)
    value = lambda run, name: run.settings.get(name)
    return [name for name in names if any(value(r, name) != value(runs[0], name) for r in runs)]


def table(runs: Sequence[Compared]) -> str:
    """The settings that differ, and what each run has come to, as text.

    It is one table, or two below each other where that would be too wide.
    """
    settings = differing(runs)
    titles = [*(title for title, _, _ in _COLUMNS), "status"]
    differ, results = [], []
    for run in runs:
        differ.append([_text(run.settings.get(name)) for name in settings])
        values = [(run.last(metric), form) for _, metric, form in _COLUMNS]
        shown = ["–" if value is None else form(value) for value, form in values]
        results.append([*shown, run.status])

    def named(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        rows = [[run.name, *row] for run, row in zip(runs, rows, strict=True)]
        return text_table(["run", *head], rows)

    whole = named([*settings, *titles], [a + b for a, b in zip(differ, results, strict=True)])
    if not settings or len(whole.splitlines()[0]) <= _WIDEST:
        return whole
    return f"{named(settings, differ)}\n\n{named(titles, results)}"


_PERCENT = lambda value: f"{100 * value:.2f}%"
_COLUMNS = (
    ("local mean", "local_accuracy_mean", _PERCENT),
    ("min", "local_accuracy_min", _PERCENT),
    ("max", "local_accuracy_max", _PERCENT),
    ("consensus", "consensus_accuracy", _PERCENT),
    ("disagreement", "consensus_distance", "{:.4f}".format),
    ("MB sent", "bytes_sent_per_agent", lambda value: f"{value / 1e6:.2f}"),
    ("seconds", "seconds_training", "{:.1f}".format),
)


_CSV = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}


def write_csv(runs: Sequence[Compared], path: Path) -> None:
    """A line for each run and epoch: run, status, differing settings as config.NAME, all metrics."""
    settings = differing(runs)
    first = ["run", "status", *(f"config.{name}" for name in settings)]
    metrics = dict.fromkeys(name for run in runs for row in run.rows for name in row)
    with cli.whole(path) as partial, partial.open("w", **_CSV) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*first, *metrics])
        for run in runs:
            known = [run.name, run.status, *(_text(run.settings.get(name)) for name in settings)]
            for row in run.rows:
                writer.writerow([*known, *(_text(row.get(name)) for name in metrics)])


def draw(runs: Sequence[Compared], path: Path) -> str:
    """Accuracy against rounds, a colour a run; returns what they are called, "rounds" or "steps"."""
    settings = differing(runs)

    def label(run: Compared) -> str:
        values = {name: _text(run.settings.get(name)) for name in settings}
        known = ", ".join(f"{name} {value}" for name, value in values.items() if value)
        return f"{run.name}: {known}" if known else run.name

    names = {run.name: label(run) for run in runs}
    if max(map(len, names.values())) > _LEGEND:  # The table has them.
        names = {name: name for name in names}
    local_steps = max(run.settings.get("local_steps", 1) for run in runs)
    curves = {names[run.name]: run.rows for run in runs}
    plots.accuracy_curves(curves, path, local_steps=local_steps)
    return plots.step_unit(local_steps)


def _runs(path: Path) -> list[Path]:
    """The run that a directory is, or the runs below it: of a comparison, of seeds, of both."""
    if (path / "config.json").exists():
        return [path]
    deep = (path.glob("*/config.json"), path.glob("*/*/config.json"))
    below = sorted(file.parent for files in deep for file in files)
    if not below:
        RunDirectory(path).settings()  # Says what is wrong.
    return below


def _read(directory: RunDirectory, name: str) -> Compared:
    # Of before there was a setting: its default.
    defaults = plain({field.name: field.default for field in _FIELDS})
    settings = defaults | directory.settings()
    settings.pop("made_with", None)
    try:
        rows, summary = _checked(directory.read_metrics()), directory.summary()
    except FileNotFoundError:
        rows, summary = [], None
    except ValueError as error:
        raise ValueError(f"{directory.path} is damaged ({error}); leave it out") from error
    if rows and "diverged" in rows[-1]:
        status = "diverged"
    elif summary is not None and summary.get("epochs") == settings.get("epochs"):
        status = "done"
    else:
        status = f"{rows[-1]['epoch'] if rows else 0} of {settings.get('epochs')} epochs"
    return Compared(name, settings, rows, status)


def _checked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, if what is shown of them are numbers.

    Raises:
      ValueError: They are not.
    """
    for name in ("step", *(metric for _, metric, _ in _COLUMNS)):
        for value in (row.get(name) for row in rows):
            if value is not None and not isinstance(value, (int, float)):
                raise ValueError(f"metrics.jsonl says that {name} is {value}, which is no number")
    return rows


def _check_ours(output: Path, figure: Path) -> None:
    """Makes sure that files of other origin are kept: only a comparison is written anew.

    Raises:
      ValueError: There is such a file.
    """
    if output.exists():
        foreign = None if output.read_bytes().startswith(b"run,status,") else output
    else:
        foreign = figure if figure.exists() else None
    if foreign:
        raise ValueError(
            f"{foreign} is there, and no comparison made it; give another name by --output=FILE.csv"
        )


def _text(value: object) -> str:
    """A value as a table has it; "" for none."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Compares what the command line names; returns the exit code."""

    def body() -> None:
        values = FlagValues()
        flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
        flags.DEFINE_string("output", _OUTPUT, "CSV file to write", flag_values=values)
        given = cli.parse(values, argv, others=True)
        if values["help"].value:
            print(cli.page(__doc__, values))
            return
        if not given:
            raise ValueError("give the directories of runs, as runs/a runs/b; --help tells more")
        output = cli.output(values["output"].value)
        figure = output.with_suffix(".png")
        if figure == output:
            raise ValueError(
                f"output is {output}, where the figure goes; give the name of a CSV file, as "
                f"{output.with_suffix('.csv')}"
            )
        runs = read(given)
        _check_ours(output, figure)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_csv(runs, output)
        print(table(runs))
        with plots.attempt(figure):
            print(f"accuracy against {draw(runs, figure)}: {figure}")
        print(f"all metrics: {output}")

    return cli.guard(body)


if __name__ == "__main__":
    sys.exit(main())
