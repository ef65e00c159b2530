"""Settings chosen on a held-out part of the training data: which ones, and by what.

Every method has its candidates: the learning rates of the grid, with each of its options. All are run
with the first seed; from one seed to the next goes the best part `keep` of them, at least two
(successive halving over seeds). Of those with all seeds the one with the best mean is chosen. Its lead
over the runner-up is compared with the seeds' spread: the standard deviation of that difference, paired
by seed.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from experiments.report import statistics
from experiments.report.outcome import show_difference, show_spread
from experiments.report.statistics import Difference
from experiments.study.catalogue import Cell, Choices, Job, Settings, Study
from experiments.study.records import Record

Known = Mapping[str, Record]
"""Records by identity."""
Table = tuple[list[str], list[list[str]]]
"""A head, and rows of as many cells."""


class Choice(NamedTuple):
    """What tuning has chosen for a method in a cell.

    Attributes:
      label: Of the candidate.
      settings: Its settings.
      runner_up: The second best with as many seeds; None where there was one candidate.
      runner_up_settings: Its settings.
      lead: By how much the deciding metric is higher, mean over seeds; NaN without a runner-up.
      spread: Standard deviation of that over seeds; NaN with one.
    """

    label: str
    settings: Settings
    runner_up: str | None
    runner_up_settings: Settings
    lead: float
    spread: float

    @property
    def close(self) -> bool:
        """Whether the lead is within the seeds' spread."""
        return self.lead <= self.spread  # False where one of them is NaN.


def score(record: Record, metric: str) -> float:
    """A run's metric; chance where it diverged, or 0 if the record does not know its classes."""
    if record["status"] == "done":
        return record["summary"].get(metric, 0.0)
    return 1 / record["classes"] if "classes" in record else 0.0


def race(study: Study, known: Known, method: str, cell: Cell) -> tuple[list[Job], list[str]]:
    """The tuning of one method in one cell, as far as it has come.

    Args:
      study: A study that tunes.
      known: Records.
      method: The method.
      cell: The cell.

    Returns:
      The runs that are called for, made or not; and the candidates that have all seeds, the best one
      first, or none while runs are missing.
    """
    tune, candidates = study.tune, study.candidates(method)
    left, jobs, sums = list(candidates), [], dict.fromkeys(candidates, 0.0)
    for count, seed in enumerate(tune.seeds, 1):
        tried = {label: study.tuning_job(method, cell, label, seed) for label in left}
        jobs += tried.values()
        if any(job.identity not in known for job in tried.values()):
            return jobs, []
        for label, job in tried.items():
            sums[label] += score(known[job.identity], study.metrics[0])
        # The smaller learning rate where two are equal.
        left.sort(key=lambda label: (-sums[label], candidates[label]["lr"]))
        if count < len(tune.seeds):
            left = left[: max(2, math.ceil(tune.keep * len(left)))]
    return jobs, left


def wanted(study: Study, known: Known) -> list[Job]:
    """All tuning runs that are called for, made or not; none are missing when tuning is finished."""
    found = [job for pair in study.tuning_pairs() for job in race(study, known, *pair)[0]]
    return sorted(found, key=lambda job: study.tune.seeds.index(job.config.seed))


def chosen(study: Study, known: Known) -> dict[tuple[str, Cell], Choice]:
    """What has been chosen for each method and tuning cell whose tuning is finished."""
    found = {}
    for method, cell in study.tuning_pairs():
        candidates, (_, left) = study.candidates(method), race(study, known, method, cell)
        if left:
            label, second, *_ = [*left, None]
            lead = _lead(study, known, method, cell, label, second)
            settings = candidates[label], candidates.get(second, {})
            found[method, cell] = Choice(label, settings[0], second, settings[1], *lead)
    return found


def _lead(
    study: Study, known: Known, method: str, cell: Cell, label: str, second: str | None
) -> tuple[float, float]:
    if second is None:
        return math.nan, math.nan
    value = lambda candidate, seed: score(
        known[study.tuning_job(method, cell, candidate, seed).identity], study.metrics[0]
    )
    _, mean, std = statistics.spread([value(label, s) - value(second, s) for s in study.tune.seeds])
    return mean, std


def choices(study: Study, known: Known) -> Choices:
    """The settings chosen, those of controls among them; as `Study.jobs` takes them."""
    found = {pair: choice.settings for pair, choice in chosen(study, known).items()}
    for method, other in study.tune.same_lr.items():
        for cell in dict.fromkeys(map(study.tuning_cell, study.cells)):
            if method in study.methods and (other, cell) in found:
                found[method, cell] = {"lr": found[other, cell]["lr"]}
    return found


def runner_up_jobs(study: Study, known: Known) -> list[Job]:
    """Runs of those that were second within the seeds' spread, as the study's own."""
    close = {pair: c.runner_up_settings for pair, c in chosen(study, known).items() if c.close}
    return study.jobs(close)


def table_of_tuning(study: Study, known: Known) -> Table:
    """Head and rows of what tuning found: mean of the deciding metric on the held-out part.

    A row for each method, cell and option, with a column for each learning rate. What is chosen has a
    star; the last column says what, where the choice is at the edge of the grid, and its lead.
    """
    picked, rows = chosen(study, known), []
    for method, cell in study.tuning_pairs():
        choice = picked.get((method, cell))
        by_label: dict[str, list[Record]] = {label: [] for label in study.candidates(method)}
        for job in race(study, known, method, cell)[0]:
            if job.identity in known:
                by_label[job.candidate].append(known[job.identity])
        shown = {label: _tuned(found, study.metrics[0]) for label, found in by_label.items()}
        if choice is not None:
            shown[choice.label] += " *"
        cells, rates = list(shown.items()), len(study.tune.lr)
        for start in range(0, len(cells), rates):
            own = [text for _, text in cells[start : start + rates]]
            option = cells[start][0].rpartition(", lr ")[0]
            mine = choice is not None and choice.label in dict(cells[start : start + rates])
            told = _told(study, choice) if mine else "" if choice else "not finished"
            rows.append([*cell, method, *([option] if study.tune.options else []), *own, told])
    option = ["option"] if study.tune.options else []
    rates = [f"lr {rate:g}" for rate in study.tune.lr]
    return [*study.axes, "method", *option, *rates, "chosen"], rows


def _told(study: Study, choice: Choice) -> str:
    lr, grid = choice.settings["lr"], study.tune.lr
    text = f"{lr:g}" + " (edge of the grid)" * (len(grid) > 1 and lr in (min(grid), max(grid)))
    if choice.close:
        points = f"{100 * choice.lead:.2f} points, seeds' spread {100 * choice.spread:.2f}"
        text += f"; not clearly ahead of {choice.runner_up} ({points})"
    return text


def _tuned(found: list[Record], name: str) -> str:
    if not found:
        return "–"
    lost = sum(record["status"] == "diverged" for record in found)
    if lost == len(found):
        return "diverged"
    text = show_spread(statistics.spread([score(r, name) for r in found]), name)
    return text + (f", {lost} of {len(found)} diverged" if lost else "")


def table_of_runners_up(study: Study, known: Known) -> Table:
    """Head and rows of what the runners-up gave on the test set, beside what was chosen."""
    metric, rows = study.metrics[0], []
    picked = chosen(study, known)

    def of(jobs: list[Job], method: str, cell: Cell) -> dict[int, Record]:
        mine = [job for job in jobs if (job.method, job.cell) == (method, cell)]
        return {job.config.seed: known[job.identity] for job in mine if job.identity in known}

    def values(found: dict[int, Record]) -> dict[int, float]:
        return {s: r["summary"][metric] for s, r in found.items() if r["status"] == "done"}

    def show(found: dict[int, Record]) -> str:
        text = show_spread(statistics.spread(list(values(found).values())), metric)
        lost = sum(record["status"] == "diverged" for record in found.values())
        return text + (f", {lost} of {len(found)} diverged" if lost else "")

    first, second = study.jobs(choices(study, known)), runner_up_jobs(study, known)
    for method, cell in dict.fromkeys((job.method, job.cell) for job in second):
        choice = picked[method, study.tuning_cell(cell)]
        both = [of(jobs, method, cell) for jobs in (first, second)]
        shown = list(map(show, both))
        difference: Difference = statistics.paired(values(both[1]), values(both[0]))
        names = [choice.label, choice.runner_up]
        told = [show_difference(difference, metric), difference.verdict]
        rows.append([*cell, method, names[0], shown[0], names[1], shown[1], *told])
    head = ["chosen", "accuracy (%)", "runner-up", "accuracy (%)", "difference [95% interval]", ""]
    return [*study.axes, "method", *head], rows
