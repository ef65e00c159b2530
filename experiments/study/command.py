"""Runs a study of experiments/study/plans: methods x settings x seeds, as far as they have not been run.

    python -m experiments.study --list
    python -m experiments.study --study=first_three
    python -m experiments.study --study=first_three --data=cifar10 --data_dir=DIR --workers=2
    python -m experiments.study --study=first_three --data=fmnist --epochs=5
    python -m experiments.study --study=main_table --only="ring 16" --only="alpha 0.01" --hours=12

What a run gave is kept in RESULTS/STUDY-DATA/runs.jsonl, and studies share runs. RESULTS is --results,
by default experiments/results in the root of a checkout and results elsewhere. The same command goes on
where it was stopped, by a signal or by --hours. With --epochs all runs are so long, and lie in
RESULTS/STUDY-DATA-5-epochs. --only leaves out what has not this text in a label of its cell, or of its
method; of several, cells must have all that are of cells, and methods any.
`python -m experiments.report` makes tables and figures of it.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags

from ccl_jax.runs import own_code
from experiments import cli
from experiments.flag_values import FlagValues
from experiments.study import catalogue, pool, records, tuning
from experiments.study.catalogue import Job, Study
from experiments.study.records import Record


def default_results() -> str:
    """The results of the checkout in whose root we are, or else `results` in the present folder."""
    of_checkout = "experiments/results"
    return of_checkout if Path(of_checkout).is_dir() else "results"


def folder(study: Study, results: Path) -> Path:
    """Where a study's results lie."""
    return results / f"{study.name}-{study.label}"


def run(
    study: Study,
    results: Path,
    workers: int = 1,
    tune_only: bool = False,
    pack_seeds: bool = False,
) -> None:
    """Runs what is missing of a study: tuning, what it chose, and runners-up that are as good.

    Every record is added to the study's runs.jsonl when it is there.

    Args:
      study: The study.
      results: The results directory.
      workers: How many run at a time.
      tune_only: Run no more than tuning.
      pack_seeds: Runs that differ in their seed alone are one program.

    Raises:
      pool.Interrupted: A signal came; what has been run is kept.
      OSError, ValueError: A run cannot be made.
    """
    how = {"results": results, "workers": workers, "pack_seeds": pack_seeds}
    try:
        # Which candidates get the next seed depends on what those before it gave.
        while study.tune is not None:
            tuning_runs = tuning.wanted(study, records.known(results))
            if not _run_missing(study, tuning_runs, "tuning, ", **how):
                break
        if not tune_only:
            _run_missing(study, _own_jobs(study, records.known(results)), **how)
            if study.tune is not None:
                second = tuning.runner_up_jobs(study, records.known(results))
                _run_missing(study, second, "runners-up, ", **how)
    finally:
        found = collect(study, results)
        _tell(f"{len(found)} of {study.total} runs are in {folder(study, results) / 'runs.jsonl'}")


def _own_jobs(study: Study, known: tuning.Known) -> list[Job]:
    """The study's runs, as far as tuning has chosen their settings."""
    return study.jobs(None if study.tune is None else tuning.choices(study, known))


def _run_missing(
    study: Study,
    jobs: Sequence[Job],
    phase: str = "",
    *,
    results: Path,
    workers: int,
    pack_seeds: bool,
) -> bool:
    """Runs those that have no record; says whether there were any."""
    known = records.known(results)
    missing = list({job.identity: job for job in jobs if job.identity not in known}.values())
    if done := sum(job.identity in known for job in jobs):
        _tell(f"{phase}{done} of {len(jobs)} runs are there already")
        _tell_of_other_code(jobs, known)
    began = time.monotonic()
    made = pool.run_all(missing, results, workers, pack_seeds=pack_seeds)
    for count, (job, record, seconds) in enumerate(made, 1):
        records.append(folder(study, results) / "runs.jsonl", _lean(study, record))
        each = (time.monotonic() - began) / count
        left = each * (len(missing) - count)
        _tell(
            f"{phase}{count}/{len(missing)} {job}: {_outcome(record)} in {seconds:.0f} s; "
            f"{duration(left)} left"
        )
    return bool(missing)


def _tell_of_other_code(jobs: Iterable[Job], known: Mapping[str, Record]) -> None:
    """Says where runs are of another version of the user's own file: settings alone name a run."""
    others: dict[str, set[str]] = {}
    for job in jobs:
        before = known.get(job.identity, {}).get("made_with", {}).get("own_code", {})
        now = own_code.checksums(job.config) if before else {}
        for file, checksum in before.items():
            if now.get(file, checksum) != checksum:
                others.setdefault(file, set()).add(checksum)
    for file, checksums in sorted(others.items()):
        _tell(
            f"note: some of them were made with another {file}; to make them again, remove the lines of "
            f"runs.jsonl that have {' or '.join(sorted(checksums))}, and their directories"
        )


def _lean(study: Study, record: Record) -> Record:
    """The record without its split, but of the first seed: one split is enough to look at."""
    if record["seed"] == study.seeds[0]:
        return record
    return {k: v for k, v in record.items() if k != "samples_by_agent_and_class"}


def collect(study: Study, results: Path) -> list[tuple[Job, Record]]:
    """Gathers what there is of a study, and writes it to its runs.jsonl.

    Records that are there already and not asked for now, as those of other seeds, stay.

    Returns:
      The jobs with a record; of what is tuned, those whose tuning is finished.
    """
    known = records.known(results)
    found = [(job, known[job.identity]) for job in _own_jobs(study, known) if job.identity in known]
    more = []
    if study.tune is not None:
        more = [*tuning.wanted(study, known), *tuning.runner_up_jobs(study, known)]
    there = [known[job.identity] for job in more if job.identity in known]
    unique = {r["id"]: _lean(study, r) for r in [*there, *(record for _, record in found)]}
    file = folder(study, results) / "runs.jsonl"
    if file.exists():
        unique |= {r["id"]: r for r in records.read(file) if r["id"] not in unique}
    if unique:
        records.write(file, unique.values())
    return found


def listing(study: Study, results: Path) -> str:
    """What a study's runs are, and which of them have been made."""
    known = records.known(results)
    lines = [f"{study.name} on {study.label}: {study.title}"]
    if study.tune is not None:
        wanted = tuning.wanted(study, known)
        lines += [f"  {_state(known, job)}  {job} (tuning)" for job in wanted]
    jobs = _own_jobs(study, known)
    lines += [f"  {_state(known, job)}  {job}" for job in jobs]
    if study.tune is not None:
        second = tuning.runner_up_jobs(study, known)
        lines += [f"  {_state(known, job)}  {job} (runner-up)" for job in second]
    if later := study.total - len(jobs):
        lines.append(f"  and then {later} runs with the settings found")
    return "\n".join(lines)


def overview(names: Iterable[str]) -> str:
    """All studies with their titles and the datasets they are ready for."""
    lines = []
    for name in names:
        study = catalogue.load(name, catalogue.datasets(name)[0])
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
    text = 'this part of it: "ring 16" for the cells or methods whose label has it; may be repeated'
    flags.DEFINE_multi_string("only", [], text, flag_values=values)
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
    study = study if epochs is None else study.of_length(epochs)
    study = dataclasses.replace(study, extensions=tuple(values["extension"].value))
    return study.part(values["only"].value)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs or lists studies; returns the exit code."""
    values = define()
    flags.DEFINE_bool("list", False, "show what there is, and run nothing", flag_values=values)
    flags.DEFINE_integer("workers", 1, "runs at a time", lower_bound=1, flag_values=values)
    text = "stop after so many, as a signal would, and go on with the same command"
    flags.DEFINE_float("hours", None, text, lower_bound=1e-6, flag_values=values)
    text = "runs that differ in their seed alone are one program, for GPUs and TPUs"
    flags.DEFINE_bool("pack_seeds", False, text, flag_values=values)
    flags.DEFINE_bool("tune_only", False, "run no more than tuning", flag_values=values)
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
        catalogue.check(study)
        if values["list"].value:
            print(listing(study, results))
            return
        if values["tune_only"].value and study.tune is None:
            raise ValueError(f"{study.name} on {study.data} tunes nothing; leave out --tune_only")
        with time_limit(values["hours"].value):
            run(study, results, workers, values["tune_only"].value, values["pack_seeds"].value)

    return cli.guard(body)


@contextlib.contextmanager
def time_limit(hours: float | None) -> Iterator[None]:
    """Sends this process SIGTERM after some hours, so that it saves what it is at and leaves."""
    if hours is None:
        yield
        return
    timer = threading.Timer(3600 * hours, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
