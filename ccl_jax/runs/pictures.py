"""Pictures of trained models: what is taken for what, where one errs, what features neighbours have."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ccl_jax.runs.plots import COLORS, text

MOST_CLASSES = 20
"""Of more classes a table or picture shows no numbers."""


class Mistake(NamedTuple):
    """An image that was taken for something else.

    Attributes:
      image: `[H, W, C]`, pixels of 0 to 1.
      true: What it shows.
      taken_for: What the model says.
      probability: How sure it is.
    """

    image: np.ndarray
    true: str
    taken_for: str
    probability: float


def confusion(
    counts: np.ndarray, class_names: Sequence[str], path: str | os.PathLike, title: str = ""
) -> None:
    """Draws which classes are taken for which; colours are shares of a row.

    Args:
      counts: `[classes, classes]` images, by true class and by what they were taken for.
      class_names: Of the rows and columns.
      path: File to write.
      title: Above the figure.
    """
    classes = len(counts)
    side = min(12.0, 2.5 + 0.42 * classes)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the images of a class", shrink=0.8)
    if classes <= MOST_CLASSES:
        names = [text(name, 16) for name in class_names]
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(classes), names, **(slanted if max(map(len, names)) > 3 else {}))
        axes.set_yticks(range(classes), names)
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if shares[row, column] > 0.6 else "black"
            number = str(counts[row, column])
            axes.text(column, row, number, ha="center", va="center", color=ink, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    axes.set_title(text(title, 120), fontsize=10)
    figure.savefig(path, dpi=150)


def mistakes(found: Sequence[Mistake], path: str | os.PathLike, title: str = "") -> None:
    """Draws images that were taken for something else, in rows of four."""
    rows = max(1, -(-len(found) // 4))
    figure = Figure(figsize=(8, 0.6 + 2.4 * rows), layout="constrained")
    for axes in figure.subplots(rows, 4, squeeze=False).flat:
        axes.set_axis_off()
    for axes, mistake in zip(figure.axes, found, strict=False):
        grey = mistake.image.shape[2] != 3
        shown = mistake.image[..., 0] if grey else mistake.image
        axes.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1)
        said = f"{text(mistake.taken_for, 22)} ({100 * mistake.probability:.1f}%)"
        axes.set_title(f"is: {text(mistake.true, 22)}\ntaken for: {said}", fontsize=8)
    figure.suptitle(text(title, 120), fontsize=11)
    figure.savefig(path, dpi=150)


def features(
    of: tuple[str, str],
    values: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike,
    title: str = "",
) -> None:
    """Draws the features that two models have of the same images, in their two principal components.

    A thin line joins what the two have of one image: the model-variant loss shortens it.

    Args:
      of: What the two models are called.
      values: `[2, n, F]` features.
      labels: `[n]` classes.
      class_names: What each class shows.
      path: File to write.
      title: Above the figure.
    """
    first, second = components(values)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*np.stack([first, second]).transpose(2, 0, 1), color="0.8", linewidth=0.6, zorder=0)
    colors = np.array(COLORS)[labels % len(COLORS)]
    axes.scatter(*first.T, c=colors, marker="o", s=20, linewidths=0)
    axes.scatter(*second.T, c=colors, marker="x", s=22, linewidths=1)
    _legend(axes, of, labels, class_names)
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(text(title, 120), fontsize=10)
    figure.savefig(path, dpi=150)


def components(values: np.ndarray) -> np.ndarray:
    """The two principal components of features, all models together: `[..., F]` -> `[..., 2]`."""
    flat = values.reshape(-1, values.shape[-1])
    flat = flat - flat.mean(axis=0)
    directions = np.linalg.svd(flat, full_matrices=False).Vh[:2]
    return (flat @ directions.T).reshape(*values.shape[:-1], 2)


def _legend(
    axes: Axes, of: tuple[str, str], labels: np.ndarray, class_names: Sequence[str]
) -> None:
    for marker, name in zip("ox", of, strict=True):
        axes.plot([], [], marker, color="0.4", label=text(name))
    there = np.unique(labels)
    for label in there:
        color = COLORS[label % len(COLORS)]
        axes.plot([], [], "s", color=color, label=text(class_names[label], 16))
    shown, every = len(there), len(class_names)
    title = f"{shown} of {every} classes" if shown < every else None
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    axes.legend(title=title, title_fontsize=8, frameon=False, fontsize=8, **place)
