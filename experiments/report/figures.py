"""The figures of a report: small panels as inline SVG, in colours that suit a light and a dark page.

A panel is as wide as a phone; panels side by side make a figure, and the page has the legend.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ccl_jax.runs import plots
from experiments.report.comparisons import dots
from experiments.report.outcome import AXES, Outcome, heading, scale
from experiments.report.panels import (
    INK,
    Panel,
    color,
    line_style,
    panel,
)
from experiments.study import records
from experiments.study.catalogue import Cell

MOST_CELLS = 8
"""Cells that get panels of their own for curves and splits; more would be a wall of pictures."""


def curves(outcome: Outcome, axis: str) -> list[Panel]:
    """The deciding metric against rounds, megabytes or modelled seconds; a panel a cell.

    A line is the mean over seeds, its band from the lowest to the highest seed. Runs that diverged end
    where they did. There is no panel for a metric that is known at the end of runs only.
    """
    if not any(outcome.metric in record["rows"] for record in outcome.records):
        return []

    def draw(axes: Axes, cell: Cell) -> None:
        for index, method in enumerate(outcome.study.methods):
            runs = list(outcome.runs(cell, method).values())
            lines = [_curve(outcome, record, axis) for record in runs]
            _band(axes, [line for line in lines if line is not None], index)
        axes.set_xlabel(AXES[axis])
        axes.set_ylabel(heading(outcome.metric))

    return [
        panel(lambda axes, c=cell: draw(axes, c), f"curves {axis} {cell}", title=", ".join(cell))
        for cell in outcome.study.cells[:MOST_CELLS]
    ]


def agents(outcome: Outcome) -> list[Panel]:
    """The agents of a run: test accuracy of the worst, the mean and the best, averaged over seeds."""

    def draw(axes: Axes, y: float, cell: Cell, method: str, index: int) -> None:
        names = ("local_accuracy_min", "local_accuracy_mean", "local_accuracy_max")
        low, mean, high = (100 * outcome.spread(cell, method, name).mean for name in names)
        if math.isfinite(mean):
            axes.plot([low, high], [y, y], color=color(index), linewidth=3, alpha=0.5)
            axes.plot(mean, y, "o", color=color(index), markersize=5)

    return _by_row(outcome, draw, "test accuracy of agents (%)", "agents")


def lines(outcome: Outcome, x: str, metric: str | None = None, log: bool = False) -> list[Panel]:
    """A metric against a number that differs between cells; a line a method."""
    metric = metric or outcome.metric

    def draw(axes: Axes) -> None:
        for index, method in enumerate(outcome.study.methods):
            points = []
            for cell in outcome.study.cells:
                at = [records.value(r, x) for r in outcome.runs(cell, method).values()]
                spread = outcome.spread(cell, method, metric)
                if at and spread.n:
                    points.append((at[0], spread.mean * scale(metric), spread.std * scale(metric)))
            if points:
                at, mean, std = np.array(sorted(points)).T
                style = {"color": color(index), "linestyle": line_style(index)}
                axes.errorbar(at, mean, np.nan_to_num(std), marker="o", markersize=4, **style)
        if log:
            axes.set_xscale("log")
        axes.set_xlabel(heading(x))
        axes.set_ylabel(heading(metric))

    return [panel(draw, f"lines {x} {metric}")]


def scatter(outcome: Outcome, x: str, y: str) -> list[Panel]:
    """Two numbers of every run; a colour a method."""

    def draw(axes: Axes) -> None:
        for index, method in enumerate(outcome.study.methods):
            points = [
                (records.value(r, x), records.value(r, y))
                for cell in outcome.study.cells
                for r in outcome.runs(cell, method).values()
                if r["status"] == "done"
            ]
            known = np.array([p for p in points if None not in p], float).reshape(-1, 2)
            units = (scale(x), scale(y))
            axes.scatter(*(known * units).T, s=18, color=color(index), alpha=0.75)
        axes.set_xlabel(heading(x))
        axes.set_ylabel(heading(y))

    return [panel(draw, f"scatter {x} {y}")]


def heatmap(
    outcome: Outcome, x: str, y: str, metric: str | None = None, difference: bool = False
) -> list[Panel]:
    """A metric over two settings of the methods; a panel a cell.

    Args:
      outcome: The results.
      x: Setting whose values are the columns.
      y: Setting whose values are the rows.
      metric: What is shown; default: the deciding one.
      difference: Show the mean difference to the reference instead, with a star where its interval
        leaves out 0.
    """
    metric, study = metric or outcome.metric, outcome.study

    def number(cell: Cell, method: str) -> float:
        found = outcome.difference(cell, method, metric)
        shown = found.mean if difference else outcome.spread(cell, method, metric).mean
        return shown * scale(metric)

    # One scale for all panels; for differences white is 0.
    everything = np.array(
        [number(cell, method) for cell in study.cells for method in study.methods]
    )
    known = everything[np.isfinite(everything)] if np.isfinite(everything).any() else np.zeros(1)
    most = max(np.abs(known).max(), 1e-9)
    limits = {"vmin": known.min(), "vmax": known.max(), "cmap": "Blues"}
    if difference:
        limits = {"vmin": -most, "vmax": most, "cmap": "RdBu"}

    def draw(axes: Axes, cell: Cell) -> None:
        configs = {method: study.config(method, cell) for method in study.methods}
        xs = sorted({getattr(config, x) for config in configs.values()})
        ys = sorted({getattr(config, y) for config in configs.values()})
        grid, texts = np.full((len(ys), len(xs)), np.nan), {}
        for method, config in configs.items():
            at = ys.index(getattr(config, y)), xs.index(getattr(config, x))
            found = outcome.difference(cell, method, metric)
            grid[at] = number(cell, method)
            seen = difference and found.verdict in ("higher", "lower")
            lost = len(outcome.diverged(cell, method))
            texts[at] = f"{grid[at]:{'+' if difference else ''}.2f}{' *' if seen else ''}"
            texts[at] = ("diverged" if lost else "–") if np.isnan(grid[at]) else texts[at]
            texts[at] += f"\n{lost} diverged" if lost and not np.isnan(grid[at]) else ""
        axes.imshow(grid, origin="lower", aspect="auto", **limits)
        for (row, column), text in texts.items():
            value = grid[row, column]
            strong = abs(value) > 0.6 * most if difference else value > known.mean()
            ink = INK if np.isnan(value) else "#ffffff" if strong else "#222222"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
        axes.grid(False)
        axes.set_xticks(range(len(xs)), [f"{v:g}" for v in xs])
        axes.set_yticks(range(len(ys)), [f"{v:g}" for v in ys])
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return [
        panel(lambda axes, c=cell: draw(axes, c), f"heat {metric} {cell}", title=", ".join(cell))
        for cell in study.cells
    ]


def splits(outcome: Outcome) -> list[Panel]:
    """Who holds which classes, in one seed: a panel for each different split of the study."""
    seen: dict[str, tuple[str, np.ndarray]] = {}
    for cell in outcome.study.cells:
        for method in outcome.study.methods:
            for record in outcome.runs(cell, method).values():
                counts = record.get("samples_by_agent_and_class")
                if counts:
                    title = ", ".join([*cell, f"seed {record['seed']}"])
                    seen.setdefault(str(counts), (title, np.array(counts)))

    def draw(axes: Axes, counts: np.ndarray) -> None:
        agent, label = np.nonzero(counts)
        number = counts[agent, label]
        sizes = 90 * number / counts.max() * min(1.0, 16 / len(counts))
        axes.scatter(agent, label, s=sizes, color=color(0), alpha=0.8, linewidths=0)
        axes.set_xlim(-0.7, counts.shape[0] - 0.3)
        axes.set_ylim(-0.7, counts.shape[1] - 0.3)
        axes.set_xlabel("agent")
        axes.set_ylabel("class")

    chosen = list(seen.values())[:MOST_CELLS]
    return [
        panel(lambda a, n=n: draw(a, n), f"split {k}", 2.4, t) for k, (t, n) in enumerate(chosen)
    ]


def of_study(outcome: Outcome, spec: Mapping[str, Any]) -> list[Panel]:
    """The panels of one table `figures` of a study file."""
    kinds = {"dots": dots, "lines": lines, "heatmap": heatmap, "scatter": scatter}
    options = {k: v for k, v in spec.items() if k not in ("kind", "title")}
    return kinds[spec["kind"]](outcome, **options)


def _curve(outcome: Outcome, record: dict, axis: str) -> np.ndarray | None:
    """`[2, points]` of a run; None if it was never evaluated."""
    values = record["rows"].get(outcome.metric)
    if values is None:
        return None
    known = [
        (x, y * scale(outcome.metric))
        for x, y in zip(outcome.along(record, axis), values, strict=True)
        if y is not None
    ]
    return np.array(known).T if known else None


def _band(axes: Axes, found: Sequence[np.ndarray], index: int) -> None:
    """Mean and range of curves of one method; a curve that ended early counts while it lasts.

    With one evaluation there is no line to draw, but a dot and a stroke.
    """
    if not found:
        return
    longest = max(found, key=lambda line: line.shape[1])
    columns = [[line[1, k] for line in found if line.shape[1] > k] for k in range(longest.shape[1])]
    low, mean, high = ([f(c) for c in columns] for f in (min, np.mean, max))
    if len(mean) == 1:
        axes.vlines(longest[0], low, high, color=color(index), alpha=0.5)
        axes.plot(longest[0], mean, "o", color=color(index), markersize=4)
        return
    axes.fill_between(longest[0], low, high, color=color(index), alpha=0.12, linewidth=0)
    axes.plot(longest[0], mean, color=color(index), linestyle=line_style(index))


def _by_row(
    outcome: Outcome,
    draw: Callable[[Axes, float, Cell, str, int], None],
    label: str,
    salt: str,
) -> list[Panel]:
    """Rows of methods with a panel a cell; with few methods rows of cells, in one panel."""
    cells, methods = outcome.study.cells, list(outcome.study.methods)
    together = len(cells) > 1 and len(methods) <= 3

    def whole(axes: Axes, shown: Sequence[Cell]) -> None:
        for row, cell in enumerate(shown):
            for index, method in enumerate(methods):
                # Methods of one cell lie close to each other.
                y = row + 0.22 * (index - (len(methods) - 1) / 2) if together else index
                draw(axes, y, cell, method, index)
        names = [", ".join(cell) for cell in shown] if together else methods
        axes.set_yticks(range(len(names)), list(map(plots.text, names)))
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel(label)

    height = 0.8 + (0.35 * len(cells) if together else 0.24 * len(methods))
    if together:
        return [panel(lambda axes: whole(axes, cells), salt, height)]
    return [
        panel(lambda axes, c=c: whole(axes, [c]), f"{salt} {c}", height, ", ".join(c))
        for c in cells
    ]
