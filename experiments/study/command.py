"""Runs a study of experiments/study/plans: methods x settings x seeds, as far as they have not been run.

    python -m experiments.study --list
    python -m experiments.study --study=first_three
    python -m experiments.study --study=first_three --data=cifar10 --data_dir=DIR --workers=2
    python -m experiments.study --study=first_three --data=fmnist --epochs=5

What a run gave is kept in RESULTS/STUDY-DATA/runs.jsonl, and studies share runs. RESULTS is --results,
by default experiments/results in the root of a checkout and results elsewhere. The same command goes on
where it was stopped. With --epochs all runs are so long, and lie in RESULTS/STUDY-DATA-5-epochs.
`python -m experiments.report` makes tables and figures of it.
"""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.flag_values import FlagValues
from experiments.study import catalogue, pool, records
from experiments.study.catalogue import Job, Study
from experiments.study.records import Record
from experiments.study.tuning import chosen_rates


def default_results() -> str:
    """The results of the checkout in whose root we are, or else `results` in the present folder."""
    of_checkout = "experiments/results"
    return of_checkout if Path(of_checkout).is_dir() else "results"


def folder(study: Study, results: Path) -> Path:
    """Where a study's results lie."""
    return results / f"{study.name}-{study.label}"


def run(study: Study, results: Path, workers: int = 1) -> None:
    """Runs what is missing of a study, and writes its runs.jsonl when all is run or something fails.

    Raises:
      pool.Interrupted: A signal came; what has been run is kept.
      OSError, ValueError: A run cannot be made.
    """
    tuning = study.tuning_jobs()
    try:
        _run_missing(tuning, results, workers, "tuning, ")
        rates = chosen_rates(study, records.known(results)) if tuning else None
        _run_missing(study.jobs(rates), results, workers)
    finally:
        found, total = collect(study, results)
        _tell(f"{len(found)} of {total} runs are in {folder(study, results) / 'runs.jsonl'}")


def _run_missing(jobs: Sequence[Job], results: Path, workers: int, phase: str = "") -> None:
    known = records.known(results)
    missing = list({job.identity: job for job in jobs if job.identity not in known}.values())
    if done := len(jobs) - len(missing):
        _tell(f"{phase}{done} of {len(jobs)} runs are there already")
    began = time.monotonic()
    for count, (job, record, seconds) in enumerate(pool.run_all(missing, results, workers), 1):
        each = (time.monotonic() - began) / count
        left = each * (len(missing) - count)
        _tell(
            f"{phase}{count}/{len(missing)} {job}: {_outcome(record)} in {seconds:.0f} s; "
            f"{duration(left)} left"
        )


def collect(study: Study, results: Path) -> tuple[list[tuple[Job, Record]], int]:
    """Gathers what there is of a study, and writes it to its runs.jsonl.

    Records that are there already and not asked for now, as those of other seeds, stay.

    Returns:
      The jobs with a record, and how many jobs there are in all. While tuning is not finished there
      are none.
    """
    known = records.known(results)
    tuning = study.tuning_jobs()
    there = [(job, known[job.identity]) for job in tuning if job.identity in known]
    jobs = []
    if len(there) == len(tuning):
        jobs = study.jobs(chosen_rates(study, known) if tuning else None)
    found = [(job, known[job.identity]) for job in jobs if job.identity in known]
    unique = {record["id"]: record for _, record in [*there, *found]}
    for record in unique.values():
        if record["seed"] != study.seeds[0]:  # One split is enough to look at.
            record.pop("samples_by_agent_and_class", None)
    file = folder(study, results) / "runs.jsonl"
    if file.exists():
        unique |= {r["id"]: r for r in records.read(file) if r["id"] not in unique}
    if unique:
        records.write(file, unique.values())
    cells = len(study.cells) * len(study.methods) * len(study.seeds)
    return found, cells


def listing(study: Study, results: Path) -> str:
    """What a study's runs are, and which of them have been made."""
    known = records.known(results)
    tuning = study.tuning_jobs()
    lines = [f"{study.name} on {study.label}: {study.title}"]
    lines += [f"  {_state(known, job)}  {job}, lr {job.config.lr:g} (tuning)" for job in tuning]
    if not all(job.identity in known for job in tuning):
        count = len(study.cells) * len(study.methods) * len(study.seeds)
        return "\n".join([*lines, f"  and then {count} runs with the learning rates found"])
    jobs = study.jobs(chosen_rates(study, known) if tuning else None)
    return "\n".join([*lines, *(f"  {_state(known, job)}  {job}" for job in jobs)])


def overview(names: Iterable[str]) -> str:
    """All studies with their titles and the datasets they are ready for."""
    lines = []
    for name in names:
        study = catalogue.load(name)
        runs = len(study.jobs() if study.tune is None else study.tuning_jobs())
        what = "runs" if study.tune is None else "tuning runs and then those of the study"
        lines += [f"{name:24} {study.title} ({runs} {what} on {study.data})"]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time for people: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def define() -> flags.FlagValues:
    """The flags that study and report share."""
    values = FlagValues()
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    flags.DEFINE_string("study", None, "its name, or a .toml file", flag_values=values)
    flags.DEFINE_string("data", "digits", "on which of its datasets", flag_values=values)
    flags.DEFINE_list("seeds", [], "these, as 0,1,2; default: its own", flag_values=values)
    flags.DEFINE_integer(
        "epochs", None, "of all runs; default: its own", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string("results", default_results(), "results directory", flag_values=values)
    return values


def requested(values: flags.FlagValues, **changes: object) -> Study:
    """The study that the flags ask for.

    Raises:
      ValueError: There is no such study, or something in it is wrong.
    """
    name = values["study"].value
    if name is None:
        raise ValueError(f"--study is missing; it is one of {', '.join(catalogue.names())}")
    try:
        seeds = tuple(map(int, values["seeds"].value))
    except ValueError:
        raise ValueError(f"seeds are {values['seeds'].value}; write them as 0,1,2") from None
    study = catalogue.load(name, values["data"].value, seeds, **changes)
    epochs = values["epochs"].value
    return study if epochs is None else study.of_length(epochs)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs or lists studies; returns the exit code."""
    values = define()
    flags.DEFINE_bool("list", False, "show what there is, and run nothing", flag_values=values)
    flags.DEFINE_integer("workers", 1, "runs at a time", lower_bound=1, flag_values=values)
    flags.DEFINE_string("data_dir", None, "where the dataset's files are", flag_values=values)
    flags.DEFINE_integer(
        "devices", None, "devices of a run; default: the study's own", flag_values=values
    )

    def body() -> None:
        cli.parse(values, argv)
        if values["help"].value:
            print(cli.page(__doc__, values))
            return
        if values["list"].value and values["study"].value is None:
            print(overview(catalogue.names()))
            return
        given = {name: values[name].value for name in ("data_dir", "devices")}
        given = {name: value for name, value in given.items() if value is not None}
        results, workers = Path(values["results"].value), values["workers"].value
        # Bars of several runs at a time, or in a log, would be a mess.
        study = requested(values, **given, progress=workers == 1 and sys.stderr.isatty())
        if values["list"].value:
            print(listing(study, results))
            return
        run(study, results, workers)

    return cli.guard(body)


def _outcome(record: Record) -> str:
    if record["status"] == "diverged":
        return f"diverged at step {record['step']}"
    accuracies = [record["summary"][name] for name in catalogue.METRICS]
    return "{:.1f}% consensus, {:.1f}% local, worst {:.1f}%".format(*(100 * a for a in accuracies))


def _state(known: Mapping[str, Record], job: Job) -> str:
    record = known.get(job.identity)
    return "missing " if record is None else f"{record['status']:8}"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
