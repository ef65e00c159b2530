"""Draws the communication graphs and prints what is known about them.

    python -m experiments.topologies
    python -m experiments.topologies --agents=8 --topology=ring --topology=torus:2x4 --out=two.pdf

Without --topology it shows every graph that has a name, and of graphs that change from round to
round the first three rounds. Circles are agents; an arrow points from the sender to the receiver, a
line stands for both directions.
"""

import pathlib
import sys
from collections.abc import Sequence

import networkx as nx
import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ccl_jax import graphs
from ccl_jax.graphs import static
from ccl_jax.graphs.topology import Topology
from ccl_jax.runs import plots
from experiments import cli
from experiments.flag_values import FlagValues

AGENTS = 16
FORMATS = (".png", ".pdf", ".svg")
ROUNDS_SHOWN = 3
COLUMNS = 6
PANEL_INCHES = 2.2
NODE, EDGE = plots.COLORS[0], plots.COLORS[-1]


def define_flags() -> flags.FlagValues:
    """The flags of this main, in a set of their own."""
    values = FlagValues()
    here = {"flag_values": values}
    flags.DEFINE_integer(
        "agents",
        None,
        f"number of agents; default: {AGENTS}, or the number that the graph needs",
        lower_bound=1,
        **here,
    )
    flags.DEFINE_multi_string("topology", None, "a graph to show; default: all", **here)
    flags.DEFINE_enum("weights", "uniform", list(graphs.WEIGHTS), "mixing weights", **here)
    flags.DEFINE_enum(
        "stochastic",
        "row",
        ["row", "column"],
        "what sums to 1: rows (averaging) or columns (push-sum)",
        **here,
    )
    flags.DEFINE_integer("seed", 0, "seed of random graphs", **here)
    flags.DEFINE_string("out", "topologies.png", "the figure: .png, .pdf or .svg", **here)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", **here)
    return values


def help_text(values: flags.FlagValues) -> str:
    """What this main does, its flags, and all names of graphs."""
    options = {f"--{values[name].name}": " ".join(values[name].help.split()) for name in values}
    lines = [(__doc__ or "").strip()]
    for heading, entries in (("Flags", options), ("Graphs", graphs.catalogue())):
        width = max(map(len, entries))
        lines += ["", f"{heading}:"]
        lines += [f"  {name:<{width}}  {text}" for name, text in entries.items()]
    return "\n".join(lines)


def table(topologies: Sequence[Topology]) -> str:
    """Formats the measures of each topology as lines of text."""
    head = ("topology", "agents", "rounds", "degree", "edges", "directed", "doubly stochastic")
    rows = [(*head, "diameter", "spectral gap", "smallest eigenvalue")]
    for facts in map(graphs.describe, topologies):
        low, high = facts["degree_min"], facts["degree_max"]
        rows.append(
            (
                facts["name"],
                str(facts["agents"]),
                str(facts["rounds"]),
                str(low) if low == high else f"{low} to {high}",
                f"{facts['edges']:.4g}",
                "yes" if facts["directed"] else "no",
                "yes" if facts["doubly_stochastic"] else "no",
                str(facts["diameter"]),
                f"{facts['spectral_gap']:.4f}",
                f"{facts['smallest_eigenvalue'] + 0.0:.4f}".replace("-0.0000", "0.0000"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def positions(topology: Topology) -> np.ndarray:
    """Places the agents of a topology where its structure is best seen; `[agents, 2]`."""
    kind, _, options = topology.name.partition(":")
    agents = topology.agents
    if kind == "torus":
        _, columns = (
            graphs.GRAPHS["torus"].parse(options)["size"] if options else (static.grid_size(agents))
        )
        return np.array([(i % columns, -(i // columns)) for i in range(agents)], float)
    if kind == "chain":  # A circle with a gap, as the chain is a ring with one edge cut.
        return _circle(agents, span=5 / 6)
    if kind == "star":
        return np.concatenate([np.zeros((1, 2)), _circle(agents - 1)])
    if kind == "petersen":
        return np.concatenate([_circle(5), 0.5 * _circle(5)])
    if kind == "dyck":  # Four rings of eight, those that are linked side by side.
        corners = 1.35 * np.array([(-1, 1), (1, 1), (-1, -1), (1, -1)])
        return np.concatenate([corner + _circle(8, turn=1 / 16) for corner in corners])
    if kind == "hypercube":  # One direction per binary digit.
        digits = (agents - 1).bit_length()
        angles = np.pi * (np.arange(digits) + 0.25) / max(digits, 1)
        axes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        axes *= (1 - 0.12 * np.arange(digits))[:, None]
        return np.array([[i >> k & 1 for k in range(digits)] for i in range(agents)]) @ axes
    if kind == "tree":
        return _tree(topology.adjacency[0])
    if kind in ("networkx", "file", "directed-file"):
        places = nx.kamada_kawai_layout(nx.from_numpy_array(topology.adjacency[0]), weight=None)
        return np.array([places[i] for i in range(agents)])
    return _circle(agents)


def draw(topologies: Sequence[Topology], path: str | pathlib.Path) -> None:
    """Draws topologies into one figure, static ones first.

    Args:
      topologies: At least one.
      path: The file; its ending gives the format. Folders are made.

    Raises:
      ValueError: The file cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} is no figure; give a name that ends in {', '.join(FORMATS)}")
    ordered = sorted(topologies, key=lambda topology: topology.rounds > 1)
    shown = [min(topology.rounds, ROUNDS_SHOWN) for topology in ordered]
    columns = min(COLUMNS, sum(shown))
    places, cell = [], 0
    for width in shown:
        if cell % columns + width > columns:
            cell += columns - cell % columns
        places.append(cell)
        cell += width
    rows = -(-cell // columns)

    figure = Figure((PANEL_INCHES * columns, (PANEL_INCHES + 0.4) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for topology, place, width in zip(ordered, places, shown, strict=True):
        for r in range(width):
            _draw_round(axes[place + r], topology, r)
            axes[place + r].set_title(_title(topology, r), fontsize=7.5)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200, facecolor="white")
    except OSError as error:
        raise ValueError(f"cannot write the figure {path}: {error.strerror}") from error


def _title(topology: Topology, r: int) -> str:
    if r:
        return f"\nround {r}"
    name = topology.name if len(topology.name) <= 34 else topology.name[:32] + "…"
    name = plots.text(name)
    if topology.rounds > 1:
        return f"{name}\nround 0 of {topology.rounds}"
    facts = graphs.describe(topology)
    low, high = facts["degree_min"], facts["degree_max"]
    degree = f"{low}" if low == high else f"{low} to {high}"
    return f"{name}\nN = {topology.agents}, degree {degree}, gap {topology.spectral_gap:.3f}"


def _draw_round(ax: Axes, topology: Topology, r: int) -> None:
    places = positions(topology)
    heard = topology.adjacency[r] > 0
    size = np.clip(1400 / topology.agents, 12, 80)
    graph = nx.from_numpy_array(heard.T, create_using=nx.DiGraph)
    both = [(i, j) for i, j in graph.edges if i < j and graph.has_edge(j, i)]
    one_way = [(i, j) for i, j in graph.edges if not graph.has_edge(j, i)]
    # Edges that close the rows and columns of a grid would run over the others: they go round.
    on_grid = topology.name.partition(":")[0] == "torus"
    wraps = [(i, j) for i, j in both if on_grid and np.ptp(places[[i, j]], axis=0).max() > 1.5]
    straight = [edge for edge in both if edge not in wraps]
    style = {"ax": ax, "edge_color": EDGE, "width": 0.4 if len(graph.edges) > 200 else 0.9}
    nx.draw_networkx_edges(graph, places, straight, arrows=False, **style)
    for edges, arrow, bend in ((wraps, "-", 0.22), (one_way, "-|>", 0.12)):
        nx.draw_networkx_edges(
            graph,
            places,
            edges,
            arrows=True,
            node_size=size,
            arrowstyle=arrow,
            arrowsize=6,
            connectionstyle=f"arc3,rad={bend}",
            **style,
        )
    nx.draw_networkx_nodes(
        graph, places, ax=ax, node_size=size, node_color=NODE, edgecolors="white", linewidths=0.6
    )
    if topology.agents <= 32:
        nx.draw_networkx_labels(
            graph, places, ax=ax, font_size=4.5 if size > 50 else 3.6, font_color="white"
        )
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.16)


def _circle(agents: int, turn: float = 0.0, span: float = 1.0) -> np.ndarray:
    """Places agents clockwise on a circle from the top; `[agents, 2]`."""
    steps = max(agents if span == 1 else agents - 1, 1)
    start = (1 - span) / 2 if span < 1 else turn
    angles = 2 * np.pi * (start + span * np.arange(agents) / steps)
    return np.stack([np.sin(angles), np.cos(angles)], axis=1)


def _tree(adjacency: np.ndarray) -> np.ndarray:
    """Places a tree with agent 0 at the top, every agent above the middle of its descendants."""
    below = nx.bfs_tree(nx.from_numpy_array(adjacency), 0)
    leaves = [i for i in nx.dfs_preorder_nodes(below, 0) if below.out_degree(i) == 0]
    depths = nx.shortest_path_length(below, 0)
    across = {}
    for i in nx.dfs_postorder_nodes(below, 0):
        under = [across[child] for child in below[i]]
        across[i] = np.mean(under) if under else float(leaves.index(i))
    wide, deep = max(len(leaves) - 1, 1), max(*depths.values(), 1)
    return np.array([(across[i] / wide, -depths[i] / deep) for i in range(len(below))])


def _all_topologies(agents: int | None, **settings) -> list[Topology]:
    """Every named graph that fits the number of agents, or has a number of its own."""
    made = []
    for key, entry in graphs.GRAPHS.items():
        if key in ("file", "directed-file"):
            continue
        try:
            made.append(
                graphs.make(entry.example or key, entry.agents or agents or AGENTS, **settings)
            )
        except ValueError as error:
            print(f"left out: {error}")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Draws and prints what the command line asks for; returns the exit code."""

    def body() -> None:
        values = define_flags()
        cli.parse(values, argv)
        if values["help"].value:
            print(help_text(values))
            return
        agents, out = values["agents"].value, values["out"].value
        settings = {key: values[key].value for key in ("weights", "stochastic", "seed")}
        names = values["topology"].value
        if names:
            chosen = [graphs.make(name, _agents(name, agents), **settings) for name in names]
        else:
            chosen = _all_topologies(agents, **settings)
        draw(chosen, out)
        print(table(chosen))
        print(f"figure: {out}")

    return cli.guard(body)


def _agents(name: str, agents: int | None) -> int:
    """The number asked for; without one the only number that fits the graph, or the default."""
    entry = graphs.GRAPHS.get(name.partition(":")[0])
    return agents or (entry and entry.agents) or AGENTS


if __name__ == "__main__":
    sys.exit(main())
