"""One panel of a figure: inline SVG, in colours that suit a light and a dark page."""

import io
import re
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ccl_jax.runs import plots
from ccl_jax.runs.plots import COLORS

Panel = str
"""An <svg> element."""

WIDTH_INCHES = 3.8

# Drawn in this colour, which nothing else has, and then turned into the colour of the page's text.
INK = "#010203"
INKED = ("text.color", "xtick.color", "ytick.color", "axes.labelcolor", "axes.edgecolor")
STYLES = ("-", "--", ":", "-.")
RC = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "DejaVu Sans",
    **dict.fromkeys(INKED, INK),
    "axes.facecolor": "none",
    "axes.titlesize": 9,
    # Below long names of rows a label would stick out if it were centred.
    "xaxis.labellocation": "right",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#888888",
    "grid.alpha": 0.3,
    "axes.grid": True,
}


def color(index: int) -> str:
    """The colour of a method; black is the page's ink."""
    chosen = COLORS[index % len(COLORS)]
    return INK if chosen == "#000000" else chosen


def css_color(index: int) -> str:
    """The same for the page."""
    return color(index).replace(INK, "currentColor")


def panel(
    draw: Callable[[Axes], None], salt: str, height_inches: float = 2.8, title: str = ""
) -> Panel:
    """Draws one panel.

    Args:
      draw: Draws into axes.
      salt: Different for every panel of a page, so that their ids differ.
      height_inches: Its height.
      title: Above it.

    Returns:
      The panel; an empty one where drawing failed, of which stderr tells.
    """
    out = io.StringIO()
    with plots.attempt(salt), mpl.rc_context(RC | {"svg.hashsalt": salt}):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        draw(axes)
        axes.set_title("\n".join(plots.text(line, 120) for line in title.splitlines()))
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.find("<svg") :].strip()
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", svg, count=4)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    # Where the font is missing, one that is as wide.
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return svg.replace(INK, "currentColor")


def line_style(index: int) -> str:
    return STYLES[index // len(COLORS) % len(STYLES)]
