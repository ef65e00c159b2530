"""Learning rates chosen on a held-out part of the training data: which ones, and by what."""

from collections.abc import Mapping

from experiments.report import statistics
from experiments.report.outcome import show_spread
from experiments.study.catalogue import Cell, Study
from experiments.study.records import Record

Rates = dict[tuple[str, Cell], float]
Table = tuple[list[str], list[list[str]]]
"""A head, and rows of as many cells."""


def chosen_rates(study: Study, known: Mapping[str, Record]) -> Rates:
    """The learning rate of each method and tuning cell that did best on the held-out part.

    By the mean of the first metric over the tuning seeds. A learning rate with which a run diverged
    loses to all others; if all diverged, the smallest is taken.

    Args:
      study: A study that tunes.
      known: All records; those of its tuning runs are among them.
    """
    scores: dict[tuple[str, Cell], dict[float, float]] = {}
    for job in study.tuning_jobs():
        record = known[job.identity]
        value = record["summary"].get(study.metrics[0], 0.0)
        value = value if record["status"] == "done" else -1.0
        by_rate = scores.setdefault((job.method, job.cell), {})
        by_rate[job.config.lr] = by_rate.get(job.config.lr, 0.0) + value
    # The smaller one where two are equal.
    return {pair: max(sorted(s), key=s.__getitem__) for pair, s in scores.items()}


def table_of_tuning(study: Study, known: Mapping[str, Record]) -> Table:
    """Head and rows of what tuning found: mean of the deciding metric on the held-out part.

    The chosen learning rate has a star, and says so where it is at the edge of the grid.
    """
    jobs = study.tuning_jobs()
    rates = chosen_rates(study, known)
    by_rate: dict[tuple[str, Cell], dict[float, list[Record]]] = {}
    for job in jobs:
        at = by_rate.setdefault((job.method, job.cell), {})
        at.setdefault(job.config.lr, []).append(known[job.identity])
    rows = []
    for (method, cell), found in by_rate.items():
        chosen = rates[method, cell]
        edge = chosen in (min(found), max(found)) and len(found) > 1
        shown = [
            _tuned(at, study.metrics[0]) + (" *" if rate == chosen else "")
            for rate, at in found.items()
        ]
        rows.append([*cell, method, *shown, f"{chosen:g}{' (edge of the grid)' if edge else ''}"])
    return [*study.axes, "method", *(f"lr {rate:g}" for rate in study.tune.lr), "chosen"], rows


def _tuned(found: list[Record], name: str) -> str:
    if any(record["status"] == "diverged" for record in found):
        return "diverged"
    return show_spread(statistics.spread([r["summary"][name] for r in found]), name)
