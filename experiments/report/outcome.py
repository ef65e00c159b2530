"""What came out of a study: its records by cell, method and seed, and the numbers that tables show."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from experiments.report import statistics
from experiments.report.statistics import Difference, Spread
from experiments.report.wall_clock import Cost, Link
from experiments.study import records
from experiments.study.catalogue import Cell, Job, Study
from experiments.study.records import Record

# What a curve can be drawn against: heading, unit.
AXES = {
    "rounds": "rounds",
    "megabytes": "megabytes sent by an agent",
    "seconds": "modelled seconds",
}


MOST_SHORT_ROWS = 8
"""Rows of the table that a page opens with."""


class Reached(NamedTuple):
    """When a target accuracy was reached.

    Attributes:
      seeds: How many runs reached it.
      of: How many runs there are.
      mean: Mean over those that did, in the unit asked for; NaN without any.
    """

    seeds: int
    of: int
    mean: float


class Outcome:
    """Records of a study, by cell, method and seed.

    Args:
      study: The study.
      found: Its jobs with their records; some may be missing.
      link: What is assumed for modelled time.
    """

    def __init__(
        self, study: Study, found: Sequence[tuple[Job, Record]], link: Link | None = None
    ) -> None:
        self.study = study
        self.link = link or Link()
        self.records = [record for _, record in found]
        self._runs: dict[tuple[Cell, str], dict[int, Record]] = {}
        for job, record in found:
            self._runs.setdefault((job.cell, job.method), {})[record["seed"]] = record

    @property
    def metric(self) -> str:
        """The one that decides."""
        return self.study.metrics[0]

    def runs(self, cell: Cell, method: str) -> dict[int, Record]:
        """Seed -> record."""
        return self._runs.get((cell, method), {})

    def diverged(self, cell: Cell, method: str) -> list[Record]:
        """The runs that diverged."""
        return [r for r in self.runs(cell, method).values() if r["status"] == "diverged"]

    def values(self, cell: Cell, method: str, name: str) -> dict[int, float]:
        """Seed -> a number of the record, of the runs that did not diverge."""
        known = {
            seed: records.value(record, name)
            for seed, record in self.runs(cell, method).items()
            if record["status"] == "done"
        }
        return {seed: value for seed, value in known.items() if value is not None}

    def spread(self, cell: Cell, method: str, name: str) -> Spread:
        """Mean and standard deviation over the seeds that did not diverge."""
        return statistics.spread(list(self.values(cell, method, name).values()))

    def difference(self, cell: Cell, method: str, name: str) -> Difference:
        """To what the method is compared with, in the same cell, paired by seed."""
        reference = self.values(cell, self.study.reference_of(method) or method, name)
        return statistics.paired(self.values(cell, method, name), reference)

    def overall(self, method: str, name: str) -> Difference:
        """As `difference`, averaged over all cells for each seed, paired by seed.

        Seeds that are missing or diverged in any cell are left out.
        """
        means = []
        for which in (method, self.study.reference_of(method) or method):
            cells = [self.values(cell, which, name) for cell in self.study.cells]
            seeds = set.intersection(*map(set, cells))
            means.append({seed: sum(c[seed] for c in cells) / len(cells) for seed in seeds})
        return statistics.paired(*means)

    def comparisons(self) -> tuple[int, int]:
        """How many differences the table has, and how many of them are of different runs."""
        study = self.study
        pairs = [
            (cell, method, reference)
            for cell in study.cells
            for method in study.methods
            if (reference := study.reference_of(method))
        ]
        there = [(c, m, r) for c, m, r in pairs if self.runs(c, m) and self.runs(c, r)]
        different = {(self._ids(cell, m), self._ids(cell, other)) for cell, m, other in there}
        return len(there), len(different)

    def compared(self) -> list[tuple[Cell, str]]:
        """The cells and methods that are compared with other runs.

        A control that came out as the method that it is compared with has that one's runs.
        """
        return [
            (cell, method)
            for cell in self.study.cells
            for method in self.study.methods
            if (reference := self.study.reference_of(method))
            and self.runs(cell, method)
            and self.runs(cell, reference)
            and self._ids(cell, method) != self._ids(cell, reference)
        ]

    def _ids(self, cell: Cell, method: str) -> frozenset[str]:
        return frozenset(record["id"] for record in self.runs(cell, method).values())

    def along(self, record: Record, axis: str) -> list[float]:
        """A record's evaluated epochs on one of `AXES`."""
        steps = record["rows"]["step"]
        sent = record["rows"]["bytes_sent_per_agent_max"]
        if axis == "rounds":
            return [float(step) for step in steps]
        if axis == "megabytes":
            return [number / 1e6 for number in sent]
        cost = Cost(**record["cost"])
        return [self.link.seconds(cost, *point) for point in zip(steps, sent, strict=True)]

    def reached(self, cell: Cell, method: str, axis: str, target: float) -> Reached:
        """When the deciding accuracy first reached a target, of the evaluated epochs."""
        runs = self.runs(cell, method).values()
        when = [
            statistics.first_reaching(self.along(record, axis), record["rows"][self.metric], target)
            for record in runs
            if record["rows"].get(self.metric)
        ]
        there = [x for x in when if x is not None]
        return Reached(len(there), len(runs), sum(there) / len(there) if there else math.nan)

    def header(self) -> list[str]:
        """Heads of the columns of `rows`."""
        study = self.study
        return [
            *study.axes,
            "method",
            "runs",
            *map(heading, study.metrics),
            "difference [95% interval]",
            "",
            "compared with",
            "MB sent",
        ]

    def short_header(self) -> list[str]:
        """Heads of the columns of `short_rows`."""
        name = heading(self.metric)
        axes = [] if self._averages() else list(self.study.axes)
        return [*axes, "method", "compared with", name, "difference [95% interval]", "", "seeds"]

    def short_rows(self) -> list[list[str]]:
        """At most `MOST_SHORT_ROWS` comparisons, those of the question.

        Those of all cells, or else averages over cells; of these, where they are too many, those that
        are farthest from no difference, in units of their intervals.
        """
        study, pairs = self.study, self.compared()
        if self._averages():
            methods = dict.fromkeys(method for _, method in pairs)
            rows = [(self.overall(m, self.metric), [m], m, study.cells) for m in methods]
        else:
            rows = [(self.difference(c, m, self.metric), [*c, m], m, [c]) for c, m in pairs]
        if len(rows) > MOST_SHORT_ROWS:
            clear = lambda found: (
                abs(found.mean) / (found.high - found.mean + 1e-12) if found.n > 1 else 0.0
            )
            kept = sorted(rows, key=lambda row: -clear(row[0]))[:MOST_SHORT_ROWS]
            rows = [row for row in rows if row in kept]
        return [
            [
                *names,
                study.reference_of(method),
                self._mean(cells, method),
                show_difference(found, self.metric),
                found.verdict,
                str(found.n),
            ]
            for found, names, method, cells in rows
        ]

    def short_note(self) -> str:
        """What `short_rows` has, where that is not each comparison; else nothing."""
        pairs, cells = self.compared(), len(self.study.cells)
        compared = {method for _, method in pairs}
        text = []
        if same := self.comparisons()[0] - len(pairs):
            many = "s" if same > 1 else ""
            text = [f"Left out: {same} comparison{many} of runs with themselves, of controls."]
        if self._averages():
            text += [f"Averages over {cells} cells for each seed."] if cells > 1 else []
            if len(compared) > MOST_SHORT_ROWS:
                most = f"The {MOST_SHORT_ROWS} that differ most clearly, of {len(compared)}"
                text += [f"{most}; all are below."]
        return " ".join(text)

    def _averages(self) -> bool:
        return len(self.compared()) > MOST_SHORT_ROWS

    def _mean(self, cells: Sequence[Cell], method: str) -> str:
        """Mean and standard deviation over seeds, averaged over cells."""
        values = [self.values(cell, method, self.metric) for cell in cells]
        seeds = set.intersection(*map(set, values))
        means = [sum(v[seed] for v in values) / len(values) for seed in sorted(seeds)]
        return show_spread(statistics.spread(means), self.metric)

    def rows(self) -> list[list[str]]:
        """The table of the study: a row for each cell and method that has a run."""
        pairs = [(cell, method) for cell in self.study.cells for method in self.study.methods]
        return [self._row(cell, method) for cell, method in pairs if self.runs(cell, method)]

    def _row(self, cell: Cell, method: str) -> list[str]:
        study, diverged = self.study, len(self.diverged(cell, method))
        count = str(len(self.runs(cell, method)))
        if diverged:
            count += f", {diverged} diverged"
        compared = ["", "", ""]
        if reference := study.reference_of(method):
            found = self.difference(cell, method, self.metric)
            compared = [show_difference(found, self.metric), found.verdict, reference]
        sent = self.spread(cell, method, "bytes_sent_per_agent").mean / 1e6
        shown = [show_spread(self.spread(cell, method, name), name) for name in study.metrics]
        megabytes = f"{sent:.2f}" if math.isfinite(sent) else "–"
        return [*cell, method, count, *shown, *compared, megabytes]

    def statements(self) -> list[str]:
        """For each method one sentence on how it compares, and no more than is seen."""
        return [self._statement(m) for m in self.study.methods if self.study.reference_of(m)]

    def _statement(self, method: str) -> str:
        study = self.study
        verdicts = [self.difference(cell, method, self.metric).verdict for cell in study.cells]
        overall = self.overall(method, self.metric)
        where = "" if len(study.cells) == 1 else " on average over all cells"
        text = f"{method} compared with {study.reference_of(method)}: {overall.verdict}{where}"
        if overall.n >= 2:
            text += f" ({show_difference(overall, self.metric)}, {overall.n} seeds)"
        if len(study.cells) > 1:
            counts = {v: verdicts.count(v) for v in dict.fromkeys(verdicts)}
            text += "; cell by cell: " + ", ".join(f"{v} in {n}" for v, n in counts.items())
        diverged = sum(len(self.diverged(cell, method)) for cell in study.cells)
        lost = f"; {diverged} run{'s' if diverged > 1 else ''} diverged" if diverged else ""
        return f"{text}{lost}."


_HEADINGS = {
    "local_accuracy_mean": "mean local accuracy",
    "local_accuracy_min": "worst local accuracy",
    "model_variant_loss": "L_mv",
    "data_variant_loss": "L_dv",
    "model_variant_loss_mean": "mean L_mv of all epochs",
    "data_variant_loss_mean": "mean L_dv of all epochs",
}


def heading(name: str, unit: bool = True) -> str:
    """What a metric is called in tables and figures, with its unit."""
    text = _HEADINGS.get(name, name.replace("_", " "))
    return f"{text} (%)" if unit and is_share(name) else text


def is_share(name: str) -> bool:
    """Whether a metric is shown in percent."""
    return "accuracy" in name


def scale(name: str) -> float:
    """What a metric is multiplied by to be shown."""
    return 100.0 if is_share(name) else 1.0


def show_spread(spread: Spread, name: str) -> str:
    """`93.21 ± 0.45`; a dash without any value."""
    if spread.n == 0:
        return "–"
    mean, std = scale(name) * spread.mean, scale(name) * spread.std
    return _digits(mean, name) + (f" ± {_digits(std, name)}" if spread.n > 1 else "")


def show_difference(found: Difference, name: str) -> str:
    """`+1.20 [−0.31, +2.71]`; a dash without any pair."""
    if found.n == 0:
        return "–"
    numbers = [_digits(scale(name) * x, name, sign=True) for x in found[1:]]
    return numbers[0] + (f" [{numbers[1]}, {numbers[2]}]" if found.n > 1 else "")


def _digits(number: float, name: str, sign: bool = False) -> str:
    form = ".2f" if is_share(name) else "#.3g"
    return f"{number:{'+' if sign else ''}{form}}".replace("-", "−")
