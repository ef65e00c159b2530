"""The static graphs that have a name, as matrices of edge counts.

Every builder returns `[agents, agents]` integers: entry (i, j) says how many edges lead from j to
i, so row i lists whom agent i receives from. The diagonal is 0. `ccl_jax.graphs` gives them weights
and a registry; here is only who is connected with whom.
"""

import math
import os
import pathlib
from collections.abc import Callable, Sequence

import networkx as nx
import numpy as np

# What the CCL authors' code calls the Dyck graph: four rings of eight, and edges between the rings.
_DYCK_RINGS = (range(0, 8), range(8, 16), range(16, 24), range(24, 32))
_DYCK_RUNGS = (
    *((0, 8), (2, 10), (4, 12), (6, 14)),
    *((1, 17), (3, 19), (5, 21), (7, 23)),
    *((9, 25), (11, 27), (13, 29), (15, 31)),
    *((16, 24), (18, 26), (20, 28), (22, 30)),
)


def edge_counts(graph: nx.Graph) -> np.ndarray:
    """Counts the edges between the nodes of a networkx graph, in sorted order of the nodes.

    Nodes that are all texts of digits, as networkx reads them from files, are sorted as numbers.

    Args:
      graph: Any graph. In a directed one the edge (j, i) means that j sends to i. Parallel edges of
        a multigraph count each; self-loops and edge attributes are ignored (an agent always hears
        itself).

    Returns:
      `[agents, agents]` integers; entry (i, j) is the number of edges from j to i.
    """
    digits = all(isinstance(node, str) and node.isdecimal() for node in graph.nodes)
    try:
        nodes = sorted(graph.nodes, key=int if digits else None)
    except TypeError:  # Nodes of mixed types have no order but that of their insertion.
        nodes = list(graph.nodes)
    counts = nx.to_numpy_array(graph, nodes, weight=None, dtype=np.int64).T
    return np.where(np.eye(len(nodes), dtype=bool), 0, counts)


def hear(agents: int, hops: Sequence[int]) -> np.ndarray:
    """Agent i receives from agent i - hop (modulo the number of agents), for every hop."""
    counts = np.zeros((agents, agents), np.int64)
    receivers = np.arange(agents)
    for hop in hops:
        np.add.at(counts, (receivers, (receivers - hop) % agents), 1)
    return counts


def ring(agents: int) -> np.ndarray:
    """Everyone hears the agent before and the agent after it; two agents share a single edge."""
    return edge_counts(nx.cycle_graph(agents))


def chain(agents: int) -> np.ndarray:
    """A ring with one edge cut."""
    return edge_counts(nx.path_graph(agents))


def star(agents: int) -> np.ndarray:
    """Agent 0 hears everyone, everyone else hears agent 0."""
    return edge_counts(nx.star_graph(agents - 1))


def full(agents: int) -> np.ndarray:
    """Everyone hears everyone."""
    return edge_counts(nx.complete_graph(agents))


def tree(agents: int, branching: int = 2) -> np.ndarray:
    """A balanced tree whose last level may be unfinished; every agent has `branching` children."""
    if branching < 1:
        raise ValueError(f"tree: {branching} children an agent are too few; give 1 or more")
    return edge_counts(nx.full_rary_tree(branching, agents))


def circulant(agents: int, offsets: Sequence[int]) -> np.ndarray:
    """Agent i is connected with i + o and i - o for every offset o; each neighbour counts once."""
    for offset in offsets:
        if not 1 <= offset < agents:
            raise ValueError(
                f"circulant: offset {offset} is out of range for {agents} agents; offsets are 1 to "
                f"{agents - 1}"
            )
    return np.minimum(hear(agents, [hop for o in offsets for hop in (o, -o)]), 1)


def circulant_torus(agents: int) -> np.ndarray:
    """What the CCL authors' code calls torus: offsets 1 and 4, every direction counted.

    Where +4 and -4 lead to the same agent (8 agents), that neighbour counts twice as it does in
    their code: uniform weights are then 1/5, 1/5, 1/5 and 2/5.
    """
    if agents < 5:
        raise ValueError(
            f"circulant-torus has an edge from agent i to i + 4 and needs at least 5 agents, got "
            f"{agents}; use more agents or a ring"
        )
    return hear(agents, (1, -1, 4, -4))


def torus(agents: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A grid of rows x columns whose rows and columns close to rings; by default nearly square."""
    if size is None:
        size = grid_size(agents)
        if size[0] == 1:
            raise ValueError(
                f"torus: {agents} agents do not form a grid of at least 2 rows; use a number of "
                "agents that is not prime, or a ring"
            )
    if min(size) < 2 or size[0] * size[1] != agents:
        raise ValueError(
            f"torus: {size[0]} x {size[1]} is no grid of {agents} agents; rows times columns must "
            "be the number of agents, with at least 2 of each"
        )
    return edge_counts(nx.grid_2d_graph(*size, periodic=True))


def grid_size(agents: int) -> tuple[int, int]:
    """Rows and columns of the grid of so many agents that is most nearly square."""
    rows = max(r for r in range(1, math.isqrt(agents) + 1) if agents % r == 0)
    return rows, agents // rows


def hypercube(agents: int) -> np.ndarray:
    """Agents are connected where their numbers differ in one binary digit."""
    if agents & (agents - 1):
        raise ValueError(
            f"hypercube needs a power of two as number of agents, got {agents}; use "
            f"{2 ** (agents.bit_length() - 1)} or {2 ** agents.bit_length()} agents, or another "
            "graph such as torus"
        )
    counts = np.zeros((agents, agents), np.int64)
    for k in range(agents.bit_length() - 1):
        counts[np.arange(agents), np.arange(agents) ^ 2**k] = 1
    return counts


def exponential(agents: int) -> np.ndarray:
    """Agent i hears i - 1, i - 2, i - 4 and so on: directed, about log2(agents) neighbours."""
    return hear(agents, [2**k for k in range((agents - 1).bit_length())])


def dyck(agents: int) -> np.ndarray:
    """What the CCL authors' code calls the Dyck graph, as in all their published runs.

    It is cubic and bipartite with girth 6, as the Dyck graph is, but another graph: its diameter is
    6 and not 5, and its spectral gap 0.146 and not 0.191. See `true_dyck`.
    """
    graph = nx.Graph(_DYCK_RUNGS)
    for nodes in _DYCK_RINGS:
        nx.add_cycle(graph, nodes)
    return _exactly("dyck", edge_counts(graph), agents)


def true_dyck(agents: int) -> np.ndarray:
    """The graph that Walther von Dyck described: cubic, symmetric, 32 agents, diameter 5."""
    return _exactly("true-dyck", edge_counts(nx.LCF_graph(32, [5, -5, 13, -13], 8)), agents)


def petersen(agents: int) -> np.ndarray:
    """The Petersen graph: cubic, 10 agents, any two at most two steps apart."""
    return _exactly("petersen", edge_counts(nx.petersen_graph()), agents)


# Generators of networkx that take the number of agents: types of their arguments, and the call.
_GENERATORS: dict[str, tuple[tuple[type, ...], Callable[..., nx.Graph]]] = {
    "barabasi_albert_graph": ((int,), lambda n, seed, m: nx.barabasi_albert_graph(n, m, seed)),
    "connected_watts_strogatz_graph": (
        (int, float),
        lambda n, seed, k, p: nx.connected_watts_strogatz_graph(n, k, p, seed=seed),
    ),
    "erdos_renyi_graph": ((float,), lambda n, seed, p: nx.erdos_renyi_graph(n, p, seed)),
    "random_geometric_graph": (
        (float,),
        lambda n, seed, radius: nx.random_geometric_graph(n, radius, seed=seed),
    ),
    "random_labeled_tree": ((), lambda n, seed: nx.random_labeled_tree(n, seed=seed)),
    "random_regular_graph": ((int,), lambda n, seed, d: nx.random_regular_graph(d, n, seed)),
    "wheel_graph": ((), lambda n, seed: nx.wheel_graph(n)),
}


def generated(
    agents: int, generator: str, arguments: Sequence[str] = (), seed: int = 0
) -> np.ndarray:
    """A graph made by one of the generators of networkx that are known to be safe and to fit."""
    if generator not in _GENERATORS:
        raise ValueError(
            f"networkx generator {generator!r} is not offered; choose from {', '.join(_GENERATORS)}"
        )
    types, make = _GENERATORS[generator]
    try:
        values = [kind(text) for kind, text in zip(types, arguments, strict=True)]
        return edge_counts(make(agents, seed, *values))
    except (ValueError, nx.NetworkXException) as error:
        wanted = ", ".join(kind.__name__ for kind in types) or "no argument"
        raise ValueError(
            f"networkx:{generator} with arguments {':'.join(arguments) or 'none'} does not make a "
            f"graph of {agents} agents (it takes {wanted}): {error}"
        ) from error


def from_file(agents: int, path: str, directed: bool = False) -> np.ndarray:
    """Reads a text file with an edge list or an adjacency list (networkx's, without weights).

    Each line names an agent and then those it is connected with (those it sends to, if directed):
    with one of them a line it is an edge list, with more an adjacency list. Text after # is a
    comment, an empty attribute `{}` at the end of a line is allowed, self-loops are ignored, an edge
    that is named again counts once. A file that may as well be an edge list with weights, or other
    columns of whole numbers, is refused: nothing else would tell a weight from a neighbour.

    Args:
      agents: Number of agents; the file must use the numbers 0 to agents - 1.
      path: The file.
      directed: Whether (j, i) means only that j sends to i.

    Returns:
      `[agents, agents]` edge counts.

    Raises:
      ValueError: There is no such file, or it is damaged; names the file and the line.
    """
    try:
        text = pathlib.Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"graph file {path} cannot be read ({error.strerror}); give an edge list or adjacency "
            "list"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"graph file {path} is not a text file in UTF-8; give an edge list or adjacency list"
        ) from error

    graph = nx.DiGraph() if directed else nx.Graph()
    rows: dict[int, list[int]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].rstrip().removesuffix("{}").split()
        where = f"graph file {path}, line {number}"
        if not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError(
                f"{where}: {line.strip()[:60]!r} is not a list of agents; write whole numbers "
                "separated by blanks, such as '0 1', and no weights"
            )
        # Python converts only so many digits: zeros in front go, and length is looked at first.
        digits = [word.lstrip("0") or "0" for word in words]
        for word in digits:
            if len(word) > len(str(agents)) or int(word) >= agents:
                raise ValueError(
                    f"{where}: there is no agent {_short(word)} among {agents} agents; the file may "
                    f"use the numbers 0 to {agents - 1}"
                )
        if not words:
            continue
        nodes = [int(word) for word in digits]
        if len(nodes) > 2 and len(set(nodes)) < len(nodes):
            raise ValueError(
                f"{where}: {line.strip()[:60]!r} names an agent twice, as a weight at its end would; "
                "weights are not read: write the two agents of an edge only"
            )
        rows[number] = nodes
        graph.add_nodes_from(nodes)
        graph.add_edges_from((nodes[0], other) for other in nodes[1:])
    missing = sorted(set(range(agents)) - set(graph.nodes))
    if missing:
        raise ValueError(
            f"graph file {path} names {len(graph)} of {agents} agents (agent {missing[0]} is "
            "missing); it must name each of them at least once"
        )
    if _may_have_weights(list(rows.values()), agents):
        first = next(iter(rows))
        raise ValueError(
            f"graph file {path}, line {first}: all lines have {len(rows[first])} numbers, as this "
            "one, and those after the second may be neighbours or weights; write one edge a line, "
            "its two agents only"
        )
    return edge_counts(graph)


def _may_have_weights(rows: list[list[int]], agents: int) -> bool:
    """Whether the rows of a file make sense as edges with further columns, as weights.

    They do if all are equally long and their first two columns name every agent; but not if they are
    an adjacency list in which everyone is listed by those it lists.
    """
    if not rows or len(rows[0]) < 3 or len({len(row) for row in rows}) > 1:
        return False
    if len({agent for row in rows for agent in row[:2]}) < agents:
        return False
    heard = {row[0]: set(row[1:]) for row in rows}
    mutual = all(i in heard.get(j, ()) for i, others in heard.items() for j in others)
    return len(heard) < len(rows) or not mutual


def _short(word: str) -> str:
    return word if len(word) <= 20 else f"{word[:10]}... ({len(word)} digits)"


def _exactly(name: str, counts: np.ndarray, agents: int) -> np.ndarray:
    if len(counts) != agents:
        raise ValueError(
            f"{name} needs exactly {len(counts)} agents, got {agents}; use {len(counts)} agents or "
            "another graph such as ring or torus"
        )
    return counts
