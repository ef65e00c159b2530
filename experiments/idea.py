"""Draws the idea: agents on a ring whose data differ, and the cross-features between two of them.

    python -m experiments.idea --output=docs/idea.png

The images are scikit-learn's digits, in the split that `python -m experiments.digits` trains on.
"""

import sys
from collections.abc import Sequence

import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ccl_jax.runs import inputs
from ccl_jax.runs.plots import COLORS
from experiments import cli
from experiments.digits import DEFAULTS
from experiments.flag_values import FlagValues

# The two agents whose features are told, by their place on the ring.
MINE, NEIGHBOR = 0, 1
COLOR = {MINE: COLORS[0], NEIGHBOR: COLORS[1]}
LINE = "#8C8C8C"
SIDE = 3  # Images of an agent lie in a square of so many.
WIDTH, HEIGHT, RING, TILE = 9.2, 4.1, 4.0, 0.72  # Inches: the figure, its left part, an agent.
FONT = 9.5


def define_flags() -> flags.FlagValues:
    """The flags of this main, in a set of their own."""
    values = FlagValues()
    here = {"flag_values": values}
    flags.DEFINE_string("output", "idea.png", "the figure; its ending chooses the format", **here)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", **here)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the figure; returns the exit code."""
    values = define_flags()

    def body() -> None:
        cli.parse(values, argv)
        if values["help"].value:
            print(cli.page(__doc__, values))
            return
        path = cli.output(values.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(some_images(SIDE**2)).savefig(path, dpi=150)
        print(f"figure: {path}")

    return cli.guard(body)


def some_images(number: int) -> list[np.ndarray]:
    """For each agent `[number, 8, 8]` of the digits that it trains on, classes in their true shares."""
    data = inputs.load(DEFAULTS)
    labels, images = data.dataset.train_labels, data.dataset.train_images[..., 0]
    by_class = [own[np.argsort(labels[own])] for own in data.partition.indices]
    evenly = lambda own: own[np.linspace(0, len(own) - 1, number).astype(int)]
    return [images[evenly(own)] for own in by_class]


def draw(images: Sequence[np.ndarray]) -> Figure:
    """The ring on the left, the features of two neighbours on the right.

    Args:
      images: For each agent, `[SIDE**2, H, W]`.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT))
    ring = RING / WIDTH
    _draw_ring(_canvas(figure, (0, 0, ring, 1), RING), images)
    _draw_features(_canvas(figure, (ring, 0, 1 - ring, 1), WIDTH - RING), images)
    return figure


def _canvas(figure: Figure, place: tuple[float, ...], width: float) -> Axes:
    """Axes without a frame whose units are inches."""
    axes = figure.add_axes(place, xlim=(0, width), ylim=(0, HEIGHT))
    axes.set_axis_off()
    return axes


def _draw_ring(axes: Axes, images: Sequence[np.ndarray]) -> None:
    middle, radius = np.array([RING / 2, HEIGHT / 2]), 1.55
    # Mine and my neighbour stand one above the other, at the right.
    angles = 2 * np.pi * (0.5 - np.arange(len(images))) / len(images)
    places = middle + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    axes.plot(*np.vstack([places, places[:1]]).T, color=LINE, linewidth=2, zorder=0)
    for k, place in enumerate(places):
        _montage(axes, images[k], place, COLOR.get(k, LINE))
    text = "data differ,\nneighbours talk"
    axes.text(*middle, text, ha="center", va="center", fontsize=FONT, color="#444444")


def _montage(axes: Axes, images: np.ndarray, place: Sequence[float], color: str) -> None:
    """Images in a square around a place, in a frame of this colour."""
    (x, y), half = place, TILE / 2
    rows = np.pad(images, ((0, 0), (1, 1), (1, 1))).reshape(
        SIDE, SIDE, *np.add(images.shape[1:], 2)
    )
    whole = np.block([list(row) for row in rows])
    extent = (x - half, x + half, y - half, y + half)
    axes.imshow(whole, cmap="gray_r", extent=extent, aspect="auto", zorder=2)
    style = {"edgecolor": color, "linewidth": 1.2 if color == LINE else 2.5, "zorder": 1}
    axes.add_patch(_box(x, y, TILE, TILE, facecolor="white", **style))


def _draw_features(axes: Axes, images: Sequence[np.ndarray]) -> None:
    """A table, data of two agents by their models; its cells are features, and the losses between."""
    (left, right), (top, bottom) = (2.0, 4.25), (2.95, 0.85)
    bold = {"ha": "center", "va": "center", "fontsize": FONT, "weight": "bold"}
    axes.text(left, HEIGHT - 0.35, "my model", color=COLOR[MINE], **bold)
    axes.text(right, HEIGHT - 0.35, "my neighbour's model", color=COLOR[NEIGHBOR], **bold)
    for y, name, k in ((top, "my data", MINE), (bottom, "its data", NEIGHBOR)):
        _montage(axes, images[k], (0.45, y), COLOR[k])
        axes.text(0.45, y - 0.58, name, color=COLOR[k], **bold)
    _cell(axes, left, top, "my features", "what I train")
    _cell(axes, right, top, "model-variant\ncross-features", "of the same images")
    _cell(axes, left, bottom, "data-variant\ncross-features", "class means, mine included")
    _pull(axes, (left + 0.86, top), (right - 0.92, top))
    axes.text(
        (left + right) / 2 - 0.03,
        top + 0.12,
        "$L_{mv}$",
        ha="center",
        va="bottom",
        fontsize=FONT + 2,
    )
    _pull(axes, (left, top - 0.47), (left, bottom + 0.56))
    axes.text(left + 0.12, (top + bottom) / 2, "$L_{dv}$", va="center", fontsize=FONT + 2)
    text = "Two losses pull my features\ntowards the cross-features."
    axes.text(right, bottom, text, ha="center", va="center", fontsize=FONT, color="#444444")


def _cell(axes: Axes, x: float, y: float, name: str, what: str) -> None:
    axes.add_patch(_box(x, y, 1.64, 0.84, facecolor="#F4F4F4", edgecolor=LINE))
    lines = name.count("\n")
    centre = {"ha": "center", "va": "center"}
    axes.text(x, y + 0.15, name, weight="bold", fontsize=FONT, **centre)
    axes.text(x, y - 0.2 - 0.08 * lines, what, fontsize=FONT - 1.5, **centre)


def _box(x: float, y: float, width: float, height: float, **style: object) -> FancyBboxPatch:
    corner = (x - width / 2, y - height / 2)
    return FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.03", **style)


def _pull(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 18, "linewidth": 2.5, "color": COLORS[2]}
    axes.add_patch(FancyArrowPatch(start, end, **style))


if __name__ == "__main__":
    sys.exit(main())
