"""Figures: what is drawn, read back from the picture or from matplotlib's own objects."""

from xml.etree import ElementTree

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from ccl_jax.runs import plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, which are written all the same."""
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **options):
        figures.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def row(step, mean, low, high, consensus):
    return {
        "step": step,
        "local_accuracy_mean": mean,
        "local_accuracy_min": low,
        "local_accuracy_max": high,
        "consensus_accuracy": consensus,
    }


def test_steps_are_rounds_unless_some_are_local(tmp_path, drawn):
    for local_steps, unit in ((1, "rounds"), (5, "steps")):
        rows = [row(10, 0.5, 0.25, 0.75, 0.6)]
        plots.accuracy_curves({"ours": rows}, tmp_path / "a.png", local_steps=local_steps)
        assert {axes.get_xlabel() for axes in drawn[-1].axes} == {unit}


def test_accuracy_curves_show_percent_against_rounds(tmp_path, drawn):
    rows = [
        {"step": 5, "cross_entropy": 2.0},  # An epoch without an evaluation.
        row(10, 0.5, 0.25, 0.75, 0.6),
        row(15, None, None, None, None),  # as a metrics file says NaN
        row(20, 0.7, 0.5, 0.8, 0.9),
    ]
    path = tmp_path / "accuracy.png"
    plots.accuracy_curves({"ours": rows, "theirs": rows}, path, "a title")
    (figure,) = drawn
    local, consensus = figure.axes
    for axes, expected in ((local, [50, 70]), (consensus, [60, 90])):
        assert [line.get_label() for line in axes.lines] == ["ours", "theirs"]
        np.testing.assert_allclose(axes.lines[0].get_xdata(), [10, 20])
        np.testing.assert_allclose(axes.lines[0].get_ydata(), expected)
        assert axes.get_xlabel() == "rounds"
    assert local.get_ylabel() == "test accuracy (%)"
    assert len({line.get_color() for line in local.lines}) == 2
    band = local.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (25, 80)
    assert matplotlib.image.imread(path).std() > 0


def test_more_runs_than_colours_and_none_evaluated(tmp_path, drawn):
    some = {str(k): [row(1, *[0.5] * 4)] for k in range(31)}
    plots.accuracy_curves(some | {"none": [{"step": 1}]}, tmp_path / "many.pdf")
    plots.accuracy_curves({"none": [{"step": 1}]}, tmp_path / "none.svg")
    many, none = drawn
    looks = {(line.get_color(), line.get_linestyle()) for line in many.axes[0].lines}
    assert len(looks) == 32
    # Beside the curves, and all of it within the picture.
    (legend,) = many.legends
    box = legend.get_window_extent()
    assert box.x0 > many.axes[1].get_window_extent().x1 and box.y0 >= 0
    named = [text.get_text() for text in legend.get_texts()]
    assert named == [*some, "none (no evaluation)"]
    assert none.axes[1].lines[0].get_label() == "none (no evaluation)"
    assert (tmp_path / "many.pdf").read_bytes().startswith(b"%PDF")
    assert b"<svg" in (tmp_path / "none.svg").read_bytes()


def test_bubbles_have_the_area_of_the_samples(tmp_path, drawn):
    counts = np.array([[10, 0, 5], [0, 20, 0]])
    path = tmp_path / "partition.png"
    plots.class_bubbles(counts, path, "my split", class_names=("a", "b", "c"))
    (axes,) = drawn[0].axes
    (bubbles,) = axes.collections
    np.testing.assert_array_equal(bubbles.get_offsets(), [[0, 0], [0, 2], [1, 1]])
    np.testing.assert_allclose(bubbles.get_sizes() / bubbles.get_sizes().max(), [0.5, 0.25, 1.0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.get_title() == "my split\nlargest bubble: 20 samples"
    assert matplotlib.image.imread(path).std() > 0


NAMES = {
    "price_$5_to_$x_": "price_$5_to_$x_",
    "$\\alpha$": "$\\alpha$",
    "a\\$b$": "a\\$b$",
    "caf\udce9": "caf\N{REPLACEMENT CHARACTER}",  # Bytes that are no UTF-8.
    "two\nlines\x07": "two lines\N{REPLACEMENT CHARACTER}",
    "x" * 100 + "yz": "x" * 23 + "\N{HORIZONTAL ELLIPSIS}" + "x" * 22 + "yz",
    "_hidden": "_hidden",
}


def written(path):
    """The texts of an SVG in which text is text."""
    texts = (element.text for element in ElementTree.parse(path).iter() if element.text)
    return {text.strip().strip("\u200b") for text in texts}


def test_names_are_text_and_no_mathematics(tmp_path):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        for title in NAMES:
            plots.class_bubbles(np.ones((2, 7), int), tmp_path / "p.svg", title, list(NAMES))
            assert set(NAMES.values()) <= written(tmp_path / "p.svg")
        curves = {name: [row(1, *[0.5] * 4)] for name in NAMES}
        plots.accuracy_curves(curves, tmp_path / "a.svg", "of $5 and $6")
    assert {*NAMES.values(), "of $5 and $6"} <= written(tmp_path / "a.svg")


def test_a_figure_that_cannot_be_drawn_is_a_warning(tmp_path, capsys):
    with plots.attempt("it.png"):
        plots.accuracy_curves({"a": [row(1, *[0.5] * 4)]}, tmp_path / "nowhere" / "it.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the figure it.png could not be drawn: [Errno 2]")


def test_a_broken_pipe_is_no_fault_of_the_figure(capsys):
    with pytest.raises(BrokenPipeError), plots.attempt("it.png"):
        raise BrokenPipeError
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("agents, classes", [(1, 1), (100, 10), (3, 1000)])
def test_bubbles_of_any_size_make_a_figure_that_can_be_looked_at(agents, classes, tmp_path):
    path = tmp_path / "partition.png"
    plots.class_bubbles(np.ones((agents, classes), int), path)
    height, width, _ = matplotlib.image.imread(path).shape
    assert max(height, width) <= 2400
