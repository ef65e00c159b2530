"""What came out of a study: its records by cell, method and seed, and the numbers that tables show."""

import itertools
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
        """As `difference`, averaged over the cells of `cells_of` for each seed, paired by seed.

        Seeds that are missing or diverged in any of them are left out.
        """
        pair, cells = (method, self.study.reference_of(method) or method), self.cells_of(method)
        return statistics.paired(*(self._means(cells, which, name) for which in pair))

    def _means(self, cells: Sequence[Cell], method: str, name: str) -> dict[int, float]:
        """Seed -> mean over cells, of the seeds that have a value in each."""
        values = [self.values(cell, method, name) for cell in cells]
        seeds = set.intersection(*map(set, values)) if values else set()
        return {seed: sum(v[seed] for v in values) / len(values) for seed in sorted(seeds)}

    def cells_of(self, method: str) -> list[Cell]:
        """The cells in which a method is compared with other runs; of equal ones the first.

        A control that came out as the method that it is compared with has that one's runs, and a
        setting of a method's own can make one run of several cells. Cells that lack runs are left in:
        of all of them nothing is known yet.
        """
        first: dict[object, Cell] = {}
        for cell in self.study.cells:
            if not self.same_runs(cell, method):
                first.setdefault(self._pairs(cell, method) or cell, cell)
        return list(first.values())

    def same_runs(self, cell: Cell, method: str) -> bool:
        """Whether a method has the runs that it is compared with."""
        pairs = self._pairs(cell, method)
        return bool(pairs) and all(one == other for one, other in pairs)

    def compared(self) -> list[tuple[Cell, str]]:
        """The comparisons that there are: of the cells of `cells_of` those that have runs."""
        own = {method: self.cells_of(method) for method in self._with_reference()}
        return [
            (cell, method)
            for cell in self.study.cells
            for method, cells in own.items()
            if cell in cells and self._pairs(cell, method)
        ]

    def comparisons(self) -> tuple[int, int]:
        """How many differences the table has, and how many of them are of different runs."""
        pairs = [
            self._pairs(cell, method)
            for cell, method in itertools.product(self.study.cells, self._with_reference())
            if not self.same_runs(cell, method)
        ]
        there = [pair for pair in pairs if pair]
        return len(there), len(set(there))

    def _with_reference(self) -> list[str]:
        return [method for method in self.study.methods if self.study.reference_of(method)]

    def _pairs(self, cell: Cell, method: str) -> frozenset[tuple[str, str]]:
        """The ids of what is compared, of each seed that both have."""
        one = self.runs(cell, method)
        other = self.runs(cell, self.study.reference_of(method) or method)
        return frozenset((one[seed]["id"], other[seed]["id"]) for seed in one.keys() & other.keys())

    def along(self, record: Record, axis: str) -> list[float]:
        """A record's evaluated epochs on one of `AXES`.

        Rounds are exchanges, and megabytes the mean over agents, as in the table; time is that of the
        slowest agent, the one that sends most.
        """
        steps, most = record["rows"]["step"], record["rows"]["bytes_sent_per_agent_max"]
        if axis == "rounds":
            local_steps = records.value(record, "local_steps")
            return [float(math.ceil(step / local_steps)) for step in steps]
        if axis == "megabytes":
            # The mean is known of the end: on a graph that stays it is the same part all along.
            whole = record["summary"].get("bytes_sent_per_agent_max", most[-1])
            part = record["summary"]["bytes_sent_per_agent"] / max(1, whole)
            return [part * number / 1e6 for number in most]
        cost = Cost(**record["cost"])
        return [self.link.seconds(cost, *point) for point in zip(steps, most, strict=True)]

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
            rows = [(self.overall(m, self.metric), [m], m, self.cells_of(m)) for m in methods]
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
        compared, cells = {method for _, method in self.compared()}, len(self.study.cells)
        text, pairs = [], itertools.product(self.study.cells, self._with_reference())
        if same := sum(self.same_runs(*pair) for pair in pairs):
            many = "s" if same > 1 else ""
            text = [f"Left out: {same} comparison{many} of runs with themselves, of controls."]
        if len(self.compared()) < self.comparisons()[0]:
            text += ["Runs that several cells share are compared once."]
        if self._averages():
            fewer = any(len(self.cells_of(method)) < cells for method in compared)
            most = "at most " if fewer else ""
            text += [f"Averages over {most}{cells} cells for each seed."] if cells > 1 else []
            if len(compared) > MOST_SHORT_ROWS:
                most = f"The {MOST_SHORT_ROWS} that differ most clearly, of {len(compared)}"
                text += [f"{most}; all are below."]
        return " ".join(text)

    def _averages(self) -> bool:
        return len(self.compared()) > MOST_SHORT_ROWS

    def _mean(self, cells: Sequence[Cell], method: str) -> str:
        """Mean and standard deviation over seeds, averaged over cells."""
        means = self._means(cells, method, self.metric).values()
        return show_spread(statistics.spread(list(means)), self.metric)

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
            if self.same_runs(cell, method):
                compared = ["", "the same runs", reference]
        sent = self.spread(cell, method, "bytes_sent_per_agent").mean / 1e6
        shown = [show_spread(self.spread(cell, method, name), name) for name in study.metrics]
        megabytes = f"{sent:.2f}" if math.isfinite(sent) else "–"
        return [*cell, method, count, *shown, *compared, megabytes]

    def statements(self) -> list[str]:
        """For each method one sentence on how it compares, and no more than is seen."""
        return [self._statement(method) for method in self._with_reference()]

    def _statement(self, method: str) -> str:
        study, cells = self.study, self.cells_of(method)
        verdicts = [self.difference(cell, method, self.metric).verdict for cell in cells]
        overall = self.overall(method, self.metric)
        text = f"{method} compared with {study.reference_of(method)}: "
        if not cells:
            text += "the same runs"
        elif len(cells) == len(study.cells):
            text += overall.verdict + (" on average over all cells" if len(cells) > 1 else "")
        elif len(cells) > 1:
            text += f"{overall.verdict} on average over its {len(cells)} distinct cells"
        else:
            text += f"{overall.verdict} in its one distinct cell"
        if overall.n >= 2:
            text += f" ({show_difference(overall, self.metric)}, {overall.n} seeds)"
        if len(cells) > 1:
            counts = {v: verdicts.count(v) for v in dict.fromkeys(verdicts)}
            text += "; cell by cell: " + ", ".join(f"{v} in {n}" for v, n in counts.items())
        diverged = sum(len(self.diverged(cell, method)) for cell in study.cells)
        lost = f"; {diverged} run{'s' if diverged > 1 else ''} diverged" if diverged else ""
        return f"{text}{lost}."


_HEADINGS = {
    "local_accuracy_mean": "mean local accuracy",
    "local_accuracy_min": "worst local accuracy",
    "consensus_distance": "disagreement",
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
