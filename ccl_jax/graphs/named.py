"""Communication graphs by name, with weights: the front door to topologies.

    make("ring", 16)
    make("torus:4x8", 32, weights="metropolis")
    make("one-peer-exponential", 16, stochastic="column")

`GRAPHS` lists the names; `describe` measures a topology. The graphs themselves are built in
`static`, `over_time` and `weighted`.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

from ccl_jax.graphs import over_time, static, topology, weighted
from ccl_jax.graphs.topology import Stochastic, Topology
from ccl_jax.graphs.weights import WEIGHTS
from ccl_jax.names import look_up


class Graph(NamedTuple):
    """A named graph.

    Attributes:
      usage: How to write it, with its options: optional ones in brackets, values in capitals.
      summary: What it is, in one line.
      build: From the number of agents and options (by keyword) to edge counts, `[agents, agents]`
        or `[rounds, agents, agents]`; an agent's edge to itself does not count. Receives `seed`, and
        `build` (which builds edge counts of another graph by its name), if it has parameters of these
        names.
      parse: From the text after "name:" to options; None where the name takes none.
      example: A complete name; None where there is none that works everywhere.
      agents: The only number of agents that fits; None if several do.
      weighs: Whether `build` gives mixing matrices, not edge counts: the graph has its own weights.
    """

    usage: str
    summary: str
    build: Callable[..., np.ndarray]
    parse: Callable[[str], dict[str, Any]] | None = None
    example: str | None = None
    agents: int | None = None
    weighs: bool = False


def _fields(**kinds: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    """Reads values separated by colons, each by its function; the last ones may be missing."""

    def parse(text: str) -> dict[str, Any]:
        values = text.split(":")
        if len(values) > len(kinds):
            raise ValueError(text)
        return {key: kinds[key](value) for key, value in zip(kinds, values, strict=False)}

    return parse


def _offsets(text: str) -> tuple[int, ...]:
    return tuple(int(offset) for offset in text.split(","))


def _size(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def _generator(text: str) -> dict[str, Any]:
    generator, *arguments = text.split(":")
    return {"generator": generator, "arguments": arguments}


def _graph_and_probability(text: str) -> dict[str, Any]:
    graph, probability = text.rsplit(":", 1)
    return {"graph": graph, "probability": float(probability)}


def _names(text: str) -> dict[str, Any]:
    """Names between plus signs; one after which no graph's name follows belongs to a file's path."""
    names: list[str] = []
    for part in text.split("+"):
        if names and "file:" in names[-1] and part.partition(":")[0] not in GRAPHS:
            names[-1] += f"+{part}"
        else:
            names.append(part)
    return {"graphs": names}


def _directed_file(agents: int, path: str) -> np.ndarray:
    return static.from_file(agents, path, directed=True)


# fmt: off
_ENTRIES = (
    # Static graphs.
    Graph("ring", "everyone hears the agent before and the agent after it", static.ring),
    Graph("chain", "a ring with one edge cut", static.chain),
    Graph("star", "agent 0 and everyone else hear each other", static.star),
    Graph("full", "everyone hears everyone", static.full),
    Graph("tree[:BRANCHING]", "a balanced tree, 2 children an agent unless given",
          static.tree, _fields(branching=int)),
    Graph("circulant:OFFSET,OFFSET,...", "agent i and i + offset hear each other, per offset",
          static.circulant, _fields(offsets=_offsets), "circulant:1,3"),
    Graph("circulant-torus", "offsets 1 and 4: what the CCL authors' code calls torus",
          static.circulant_torus),
    Graph("torus[:ROWSxCOLUMNS]", "a grid closed in both directions, nearly square unless given",
          static.torus, _fields(size=_size)),
    Graph("hypercube", "agents differ in one binary digit; a power of two of them",
          static.hypercube),
    Graph("exponential", "directed: agent i hears i - 1, i - 2, i - 4, ...",
          static.exponential),
    Graph("dyck", "what the CCL authors' code calls the Dyck graph: cubic, 32 agents",
          static.dyck, agents=32),
    Graph("true-dyck", "the Dyck graph of the mathematicians: cubic, 32 agents",
          static.true_dyck, agents=32),
    Graph("petersen", "the Petersen graph: cubic, 10 agents", static.petersen, agents=10),
    Graph("networkx:GENERATOR[:ARGUMENT...]", "a (seeded) graph of a networkx generator",
          static.generated, _generator, "networkx:random_regular_graph:3"),
    Graph("file:PATH", "an edge list or adjacency list, agents numbered from 0",
          static.from_file, lambda text: {"path": text}),
    Graph("directed-file:PATH", "the same, where each line's first agent sends to the others",
          _directed_file, lambda text: {"path": text}),
    # Graphs over time.
    Graph("one-peer-exponential", "directed: in round t agent i hears i - 2^t, t modulo log2 N",
          lambda agents: over_time.peer_exponential(agents, peers=1)),
    Graph("p-peer-exponential:PEERS", "directed: p peers a round at distances j (p+1)^t, j = 1..p",
          over_time.peer_exponential, _fields(peers=int), "p-peer-exponential:3"),
    Graph("random-matching[:ROUNDS]", "random pairs, another in each of 64 rounds",
          over_time.random_matching, _fields(rounds=int)),
    Graph("random-regular:DEGREE[:ROUNDS]", "a random regular graph, another in each of 64 rounds",
          over_time.random_regular, _fields(degree=int, rounds=int), "random-regular:3"),
    Graph("alternating:GRAPH+GRAPH+...", "named graphs one after the other",
          over_time.alternating, _names, "alternating:ring+star"),
    Graph("edges-come-and-go:GRAPH:PROBABILITY", "each edge of a graph works at times, at random",
          over_time.edges_come_and_go, _graph_and_probability,
          "edges-come-and-go:ring:0.5"),
    Graph("epidemic:PEERS[:ROUNDS]", "directed: everyone sends to random others, in 64 rounds",
          over_time.epidemic, _fields(peers=int, rounds=int), "epidemic:2"),
    # Graphs with weights of their own.
    Graph("base-graph:K", "Base-(K+1): the exact mean after a period, at most K neighbours a round",
          weighted.base, _fields(k=int), "base-graph:1", weighs=True),
    Graph("simple-base-graph:K", "Simple Base-(K+1): the same, often in more rounds",
          weighted.simple_base, _fields(k=int), "simple-base-graph:1", weighs=True),
    Graph("d-equistatic:OFFSETS", "directed: so many random offsets",
          partial(weighted.equi_static, directed=True), _fields(offsets=int), "d-equistatic:4",
          weighs=True),
    Graph("u-equistatic:OFFSETS", "so many random offsets, both ways",
          partial(weighted.equi_static, directed=False), _fields(offsets=int), "u-equistatic:4",
          weighs=True),
    Graph("od-equidyn[:ETA[:ROUNDS]]", "directed: a random offset a round, 64 rounds, ETA 0.5",
          partial(weighted.equi_dynamic, directed=True), _fields(eta=float, rounds=int),
          weighs=True),
    Graph("ou-equidyn[:ETA[:ROUNDS]]", "pairs at a random offset a round, 64 rounds, ETA 0.5",
          partial(weighted.equi_dynamic, directed=False), _fields(eta=float, rounds=int),
          weighs=True),
)
# fmt: on

GRAPHS: dict[str, Graph] = {entry.usage.split("[")[0].split(":")[0]: entry for entry in _ENTRIES}


def catalogue() -> dict[str, str]:
    """Every named graph: from how it is written to what it is in one line."""
    return {entry.usage: entry.summary for entry in GRAPHS.values()}


def make(
    name: str,
    agents: int,
    *,
    weights: str = "uniform",
    stochastic: Stochastic = "row",
    seed: int = 0,
    **options: Any,
) -> Topology:
    """Builds a named graph with weights.

    Args:
      name: A key of `GRAPHS`, with its options if it has any: "ring", "torus:4x8".
      agents: Number of agents, at least 1.
      weights: A key of `weights.WEIGHTS`; graphs with weights of their own take none but the default.
      stochastic: "row" for averaging; "column" for push-sum, where uniform weights are
        1 / (out-degree + 1) of the sender.
      seed: For graphs that are random.
      **options: Options by keyword, as the builder of the graph calls them (`size=(4, 8)`); they
        win over those in the name.

    Returns:
      A connected topology called `name`.

    Raises:
      ValueError: Unknown names, a graph that does not fit the number of agents, a file that cannot
        be used, or a disconnected graph.
    """
    built = _build(name, agents, seed, **options)
    if not GRAPHS[name.partition(":")[0]].weighs:
        return _topology(name, built, weights, stochastic)
    if weights != "uniform":
        raise ValueError(
            f"topology {name} has weights of its own, and weights is {weights!r}; leave weights out"
        )
    _check_connected(name, (built != 0).astype(int))
    return topology.from_matrix(name, built, stochastic=stochastic)


def from_networkx(
    graph: nx.Graph,
    name: str = "networkx",
    *,
    weights: str = "uniform",
    stochastic: Stochastic = "row",
) -> Topology:
    """Builds a topology from any networkx graph; agents are its nodes in sorted order.

    Args:
      graph: The graph. A directed edge (j, i) means that j sends to i; parallel edges count each;
        self-loops and edge attributes are ignored. Nodes that are texts of digits are sorted as
        numbers.
      name: What to call it.
      weights: A key of `weights.WEIGHTS`.
      stochastic: "row", or "column" for push-sum.

    Raises:
      ValueError: The graph is empty or disconnected, or the weights do not fit.
    """
    if len(graph) == 0:
        raise ValueError(f"{name}: the graph has no nodes; give one with at least one agent")
    return _topology(name, static.edge_counts(graph), weights, stochastic)


def describe(graph: Topology) -> dict[str, Any]:
    """Measures a topology.

    Returns:
      name, agents, rounds; degree_min, degree_mean, degree_max: neighbours received from, over
      agents and rounds; edges: mean number a round (an undirected one counts once); directed,
      doubly_stochastic; spectral_gap (of a whole period) and smallest_eigenvalue (of any round);
      diameter: rounds of gossip, from round 0 on, until everyone has heard of everyone (for a
      static graph its diameter; None if that never happens).
    """
    degrees = graph.mask.sum(axis=2)
    return {
        "name": graph.name,
        "agents": graph.agents,
        "rounds": graph.rounds,
        "degree_min": int(degrees.min()),
        "degree_mean": float(degrees.mean()),
        "degree_max": int(degrees.max()),
        "edges": float(degrees.sum() / graph.rounds / (1 if graph.directed else 2)),
        "directed": graph.directed,
        "doubly_stochastic": graph.doubly_stochastic,
        "spectral_gap": graph.spectral_gap,
        "smallest_eigenvalue": graph.smallest_eigenvalue,
        "diameter": _rounds_until_all_know(graph),
    }


def _edge_counts(name: str, agents: int, seed: int, **options: Any) -> np.ndarray:
    """Builds the edge counts of a named graph, `[rounds, agents, agents]`."""
    entry = GRAPHS.get(name.partition(":")[0])
    if entry and entry.weighs:
        raise ValueError(f"topology {name} has weights of its own; it cannot be part of another")
    return _build(name, agents, seed, **options)


def _build(name: str, agents: int, seed: int, **options: Any) -> np.ndarray:
    """Edge counts, or mixing matrices where the graph weighs; `[rounds, agents, agents]`."""
    if agents < 1:
        raise ValueError(f"{agents} agents are too few; give 1 or more")
    key, colon, text = name.partition(":")
    entry = look_up("topology", key, GRAPHS)
    how = f"write {entry.usage}" + (f", such as {entry.example}" if entry.example else "")
    if colon and not entry.parse:
        raise ValueError(f"topology {key} takes no options, got {name!r}; {how}")
    if colon:
        try:
            options = {**entry.parse(text), **options}
        except ValueError as error:
            raise ValueError(f"topology {name!r} is not understood; {how}") from error
    parameters = inspect.signature(entry.build).parameters
    given = {"seed": seed, "build": _edge_counts}
    if not parameters:
        raise ValueError(
            f"what builds topology {key} takes nothing; it must take the number of agents"
        )
    takes = [key for key in list(parameters)[1:] if key not in ("directed", *given)]
    for option in options:
        if option not in takes:
            raise ValueError(
                f"topology {key} takes no option {option!r}; it takes "
                f"{', '.join(takes) or 'none'} ({how})"
            )
    for option in takes:
        if option not in options and parameters[option].default is inspect.Parameter.empty:
            raise ValueError(f"topology {name!r} needs {option}; {how}")
    given = {key: value for key, value in given.items() if key in parameters}
    return _checked(entry.build(agents, **given, **options), key, agents)


def _checked(made: Any, key: str, agents: int) -> np.ndarray:
    """What the builder of a graph returned, if it is what it must be: `[rounds, agents, agents]`."""
    try:
        built = np.asarray(made)
    except ValueError:  # Rows of several lengths.
        built = np.array(None)
    built = built[None] if built.ndim == 2 else built
    square = built.ndim == 3 and built.shape[1:] == (agents, agents) and len(built) > 0
    if not square or built.dtype.kind not in "biuf":
        array = isinstance(made, np.ndarray)
        is_ = f"{made.dtype}{list(made.shape)}" if array else type(made).__name__
        raise ValueError(
            f"what builds topology {key} returns {is_}; it must return a matrix [{agents}, {agents}], "
            "or one a round: how many edges lead from j to i"
        )
    if GRAPHS[key].weighs:
        return built
    counted = (built >= 0) & (built == np.floor(built)) & np.isfinite(built)
    if not counted.all():
        raise ValueError(
            f"what builds topology {key} returns {built[~counted][0]:g} as a number of edges; they are "
            "counted"
        )
    return built.astype(int) * (1 - np.eye(agents, dtype=int))


def _topology(name: str, counts: np.ndarray, weights: str, stochastic: Stochastic) -> Topology:
    """Weighs edge counts and lists the neighbours, after checking that all hear of all."""
    if stochastic not in ("row", "column"):
        raise ValueError(f"stochastic is {stochastic!r}; it must be 'row' or 'column'")
    counts = counts[None] if counts.ndim == 2 else counts
    _check_connected(name, counts)
    matrices = look_up("weights", weights, WEIGHTS)(counts, stochastic)
    rounds, agents, _ = counts.shape
    neighbors = np.full((rounds, agents, counts.sum(axis=2).max()), -1)
    for r, i in np.ndindex(rounds, agents):
        heard = np.repeat(np.arange(agents), counts[r, i])
        neighbors[r, i, : len(heard)] = heard
    return topology.from_neighbors(name, neighbors, weights=matrices, stochastic=stochastic)


def _check_connected(name: str, counts: np.ndarray) -> None:
    """Over all rounds together, there must be a way from everyone to everyone."""
    sends = nx.from_numpy_array(counts.sum(axis=0).T > 0, create_using=nx.DiGraph)
    parts = sorted(map(len, nx.strongly_connected_components(sends)), reverse=True)
    if len(parts) > 1:
        sizes = ", ".join(map(str, parts[:8])) + (", ..." if len(parts) > 8 else "")
        raise ValueError(
            f"topology {name} is disconnected: {len(parts)} components of {sizes} agents between "
            "which news does not pass both ways; add edges (or rounds, or try another seed)"
        )


def _rounds_until_all_know(graph: Topology) -> int | None:
    if not graph.connected:
        return None
    hears = (graph.adjacency > 0) | np.eye(graph.agents, dtype=bool)
    knows = np.eye(graph.agents, dtype=bool)
    t = 0
    while not knows.all():
        knows = hears[t % graph.rounds] @ knows
        t += 1
    return t
