"""Figures that compare each method with one other: a panel a comparison, a row a cell."""

import io
import math
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ccl_jax.runs import plots
from experiments.report.outcome import Outcome, heading, is_share, scale
from experiments.report.panels import COLORS, INK, INKED, RC, Panel, color, panel
from experiments.study.catalogue import Cell


def dots(outcome: Outcome, metric: str | None = None) -> list[Panel]:
    """A metric of a method and of what it is compared with, a panel a comparison, a row a cell.

    Each seed, and the mean with its standard deviation.
    """
    metric = metric or outcome.metric
    methods = list(outcome.study.methods)

    def draw(axes: Axes, y: float, cell: Cell, method: str) -> None:
        pair = (outcome.study.reference_of(method), method)
        for shift, each in zip((-0.13, 0.13), pair, strict=True):
            shown = color(methods.index(each))
            values = np.array(list(outcome.values(cell, each, metric).values())) * scale(metric)
            if len(values) == 0:
                continue
            std = values.std(ddof=1) if len(values) > 1 else 0.0
            at = y + shift
            axes.plot(values, [at] * len(values), "|", color=shown, alpha=0.6, markersize=7)
            axes.errorbar(values.mean(), at, xerr=std, fmt="o", color=shown, markersize=5)

    return _by_comparison(outcome, draw, heading(metric), f"dots {metric}")


def differences(outcome: Outcome) -> list[Panel]:
    """What each method is better or worse by than what it is compared with: mean and 95% interval.

    A panel a comparison, a row a cell.
    """
    methods, limits = list(outcome.study.methods), _limits(outcome)

    def draw(axes: Axes, y: float, cell: Cell, method: str) -> None:
        _interval(axes, y, outcome, cell, method, color(methods.index(method)), limits)
        axes.axvline(0, color=INK, linewidth=0.8)

    return _by_comparison(outcome, draw, _difference_label(outcome), "differences", limits)


def picture(outcome: Outcome) -> bytes:
    """The differences in one PNG picture, a panel a comparison, for where there is no page."""
    study = outcome.study
    compared, limits = _compared(outcome), _limits(outcome)
    wide = min(3, max(1, len(compared)))
    high = max(1, math.ceil(len(compared) / wide))
    with mpl.rc_context({**RC, **dict.fromkeys(INKED, "black"), "axes.facecolor": "white"}):
        size = (9, 0.4 + high * (0.7 + 0.22 * len(study.cells)))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, method in zip(grid, compared, strict=False):
            shown = COLORS[list(study.methods).index(method) % len(COLORS)]
            for row, cell in enumerate(study.cells):
                _interval(axes, row, outcome, cell, method, shown, limits)
            axes.axvline(0, color="black", linewidth=0.8)
            names = (method, f"against {study.reference_of(method)}")
            axes.set_title("\n".join(plots.text(name, 120) for name in names), fontsize=8)
        for axes in grid[len(compared) :]:
            axes.set_axis_off()
        names = [plots.text(", ".join(cell)) for cell in study.cells]
        grid[0].set_yticks(range(len(names)), names)
        grid[0].set_ylim(len(names) - 0.5, -0.5)
        grid[0].set_xlim(limits)
        label = f"{_difference_label(outcome)}: mean over seeds and 95% interval"
        figure.supxlabel(label, fontsize=9)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()


def _interval(
    axes: Axes,
    y: float,
    outcome: Outcome,
    cell: Cell,
    method: str,
    shown: str,
    limits: tuple[float, float],
) -> None:
    """Mean and 95% interval of a difference, in a row of its own.

    An interval that goes beyond the limits ends there, with an arrow. In words: how many runs diverged,
    and that a control has the runs that it is compared with.
    """
    found, same = outcome.difference(cell, method, outcome.metric), outcome.same_runs(cell, method)
    mean, low, high = np.array(found[1:]) * scale(outcome.metric)
    lost, runs = len(outcome.diverged(cell, method)), len(outcome.runs(cell, method))
    if lost or same:
        # On the side where the dot is not.
        x, side = (0.98, "right") if mean < sum(limits) / 2 else (0.02, "left")
        words = "diverged" if lost == runs else f"{lost} of {runs} diverged"
        words = "the same runs" if same else words
        at = axes.get_yaxis_transform()
        axes.text(x, y, words, transform=at, ha=side, va="center", fontsize=8)
    if found.n == 0 or same:
        return
    reach = None
    if found.n >= 2:
        left, right = limits
        reach = [[mean - max(low, left)], [min(high, right) - mean]]
        for edge, arrow, beyond in ((left, "<", low < left), (right, ">", high > right)):
            if beyond:
                axes.plot(edge, y, arrow, color=shown, markersize=6, clip_on=False)
    axes.errorbar(mean, y, xerr=reach, fmt="o", color=shown, markersize=5)


def _limits(outcome: Outcome) -> tuple[float, float]:
    """The scale of all differences: 0, their means, and their intervals but for very wide ones.

    Two seeds that disagree can have an interval of hundreds of points, beside which nothing else would
    be seen: one that is more than ten times as wide as the (lower) median does not count.
    """
    found = [
        outcome.difference(cell, method, outcome.metric)
        for cell in outcome.study.cells
        for method in _compared(outcome)
    ]
    known = np.array([d[1:] for d in found if d.n > 0]).reshape(-1, 3) * scale(outcome.metric)
    intervals = np.array([d[2:] for d in found if d.n >= 2]).reshape(-1, 2) * scale(outcome.metric)
    widths = np.ptp(intervals, axis=1)
    # Of equal runs it is a point.
    wide = np.sort(widths[widths > 0])
    usual = intervals[widths <= 10 * wide[(len(wide) - 1) // 2]] if len(wide) else intervals
    points = np.concatenate([[0.0], known[:, 0], usual.ravel()])
    low, high = points.min(), points.max()
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _difference_label(outcome: Outcome) -> str:
    unit = "points" if is_share(outcome.metric) else ""
    return f"difference in {heading(outcome.metric, unit=False)} {unit}".strip()


def _compared(outcome: Outcome) -> list[str]:
    """The methods that are compared with other runs in some cell, in the order of the study."""
    there = {method for _, method in outcome.compared()}
    return [method for method in outcome.study.methods if method in there]


def _by_comparison(
    outcome: Outcome,
    draw: Callable[[Axes, float, Cell, str], None],
    label: str,
    salt: str,
    limits: tuple[float, float] | None = None,
) -> list[Panel]:
    """A panel for each method that is compared with another, rows of cells; all with one scale."""
    study, cells = outcome.study, outcome.study.cells
    names = [plots.text(", ".join(cell)) for cell in cells]

    def whole(axes: Axes, method: str) -> None:
        for row, cell in enumerate(cells):
            draw(axes, row, cell, method)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)

    if limits is None:
        # Drawn once for all to find the scale.
        scratch = Figure().subplots()
        for method in _compared(outcome):
            whole(scratch, method)
        limits = scratch.get_xlim()

    def shown(axes: Axes, method: str) -> None:
        whole(axes, method)
        axes.set_xlim(limits)
        axes.set_xlabel(label)

    height = 1.05 + (0.28 if len(cells) <= 12 else 0.2) * len(cells)
    return [
        panel(
            lambda axes, m=method: shown(axes, m),
            f"{salt} {method}",
            height,
            f"{method}\nagainst {study.reference_of(method)}",
        )
        for method in _compared(outcome)
    ]
