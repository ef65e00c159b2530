"""Figures: accuracy against rounds, and who holds which classes."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
# Curves beyond the eighth take the colours again, dashed.
_DASHES = ("-", "--", ":", "-.")


def text(name: object, most: int = 48) -> str:
    """A name as matplotlib is to draw it: in one line, not too long, and never as mathematics.

    Characters that cannot be drawn, such as the undecodable bytes of a file's name, are replaced.

    Args:
      name: A class, method, graph or title.
      most: Characters that are shown; of a longer name the middle is left out.
    """
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in _one_line(name))
    if len(line) > most:
        half = most // 2
        line = f"{line[: half - 1]}\N{HORIZONTAL ELLIPSIS}{line[-half:]}"
    # A legend leaves out what begins with an underscore.
    return re.sub("^_", "\u200b_", line.replace("$", r"\$"))


def _one_line(name: object) -> str:
    return " ".join(str(name).split())


@contextlib.contextmanager
def attempt(what: object) -> Iterator[None]:
    """Lets a figure fail with a warning on stderr: it can be drawn again, and what it shows cannot.

    Args:
      what: The figure, for the warning.
    """
    try:
        yield
    except BrokenPipeError:  # Of a line printed beside the drawing.
        raise
    except Exception as error:  # What a drawing raises, no list of matplotlib's tells.
        said = _one_line(error) or type(error).__name__
        print(f"warning: the figure {what} could not be drawn: {said}", file=sys.stderr)


def step_unit(local_steps: int) -> str:
    """What steps are called: each is a round of communication unless some are local."""
    return "rounds" if local_steps == 1 else "steps"


def accuracy_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | os.PathLike,
    title: str = "",
    local_steps: int = 1,
) -> None:
    """Draws test accuracy against communication rounds, or against steps where some are local.

    Args:
      runs: Label -> rows of metrics with `step`, `local_accuracy_mean`, `_min`, `_max` and
        `consensus_accuracy`; rows without an evaluation are passed over. The legend names runs that
        have no evaluation at all.
      path: File to write; its ending chooses the format.
      title: Above the figure.
      local_steps: The largest number of a run, from one exchange to the next.
    """
    beside = len(runs) > 4  # A legend of more lines would hide the curves.
    figure = Figure(figsize=(12, max(3.8, 0.18 * len(runs))) if beside else (9, 3.8))
    figure.set_layout_engine("constrained")
    local, consensus = figure.subplots(1, 2, sharey=True)
    for k, (label, rows) in enumerate(runs.items()):
        rows = [row for row in rows if row.get("local_accuracy_mean") is not None]
        color = COLORS[k % len(COLORS)]
        look = {"color": color, "linestyle": _DASHES[k // len(COLORS) % len(_DASHES)]}
        look["label"] = text(label) + ("" if rows else " (no evaluation)")
        steps = [row["step"] for row in rows]
        percent = lambda name, rows=rows: 100 * np.array([row[name] for row in rows])
        local.fill_between(
            steps,
            percent("local_accuracy_min"),
            percent("local_accuracy_max"),
            color=color,
            alpha=0.6 / max(4, len(runs)),  # So that many bands do not hide the curves.
            linewidth=0,
        )
        local.plot(steps, percent("local_accuracy_mean"), **look)
        consensus.plot(steps, percent("consensus_accuracy"), **look)
    local.set_title("agents' own models (mean; band: min to max)", fontsize=10)
    consensus.set_title("consensus model", fontsize=10)
    local.set_ylabel("test accuracy (%)")
    for axes in (local, consensus):
        axes.set_xlabel(step_unit(local_steps))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if beside:
        handles = consensus.get_lines()
        figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside right upper")
    else:
        consensus.legend(frameon=False, fontsize=9, loc="lower right")
    figure.suptitle(text(title, 120), fontsize=11)
    figure.savefig(path, dpi=150)


def class_bubbles(
    counts: np.ndarray,
    path: str | os.PathLike,
    title: str = "",
    class_names: Sequence[str] | None = None,
) -> None:
    """Draws who holds which classes: one bubble an agent and class, its area the number of samples.

    Args:
      counts: `[agents, classes]` integers.
      path: File to write.
      title: Above the figure.
      class_names: Names for the vertical axis; default the class numbers.
    """
    agents, classes = counts.shape
    names = [text(name) for name in class_names or range(classes)]
    beside = 0.08 * max(0, max(map(len, names)) - 10)
    width = min(16.0, 2.5 + 0.35 * agents + beside)
    height = min(16.0, 1.4 + 0.32 * classes)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    agent, label = np.nonzero(counts)
    number = counts[agent, label]
    axes.scatter(agent, label, s=220 * number / max(1, counts.max()), color=COLORS[0], alpha=0.8)
    axes.set_xticks(range(agents) if agents <= 40 else range(0, agents, agents // 20))
    if classes <= 40:
        axes.set_yticks(range(classes), names)
    axes.set_xlim(-0.7, agents - 0.3)
    axes.set_ylim(-0.7, classes - 0.3)
    axes.set_xlabel("agent")
    axes.set_ylabel("class")
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    lines = [*([text(title, 120)] if title else []), f"largest bubble: {counts.max()} samples"]
    axes.set_title("\n".join(lines), fontsize=10)
    figure.savefig(path, dpi=150)
