"""What methods need of the graph: checks that several share, each of which refuses what does not fit."""

from typing import Any

from ccl_jax.graphs.topology import Topology


def static(topology: Topology, hyperparameters: dict[str, Any]) -> None:
    """Refuses graphs over time."""
    _need(topology.rounds == 1, topology, "a graph that does not change", "ring or torus")


def undirected(topology: Topology, hyperparameters: dict[str, Any]) -> None:
    """Refuses graphs in which someone hears another that does not hear it."""
    _need(not topology.directed, topology, "an undirected graph", "ring or torus")


def doubly_stochastic(topology: Topology, hyperparameters: dict[str, Any]) -> None:
    """Refuses matrices whose columns do not sum to 1."""
    advice = "metropolis weights or a regular graph (weights=metropolis, or a ring)"
    _need(topology.doubly_stochastic, topology, "a doubly stochastic mixing matrix", advice)


def tree(topology: Topology, hyperparameters: dict[str, Any]) -> None:
    """Refuses graphs with a cycle."""
    edges = int(topology.adjacency.sum(axis=(1, 2)).max())
    is_tree = not topology.directed and edges == 2 * (topology.agents - 1)
    _need(is_tree and topology.connected, topology, "a tree", "chain or star")


def star(topology: Topology, hyperparameters: dict[str, Any]) -> None:
    """Refuses graphs that are not one hub and its leaves."""
    degrees = sorted(topology.adjacency[0].sum(axis=1))
    hub = [1] * (topology.agents - 1) + [topology.agents - 1]
    _need(topology.agents < 3 or degrees == hub, topology, "a star", "star")


def _need(fits: bool, topology: Topology, what: str, instead: str) -> None:
    if not fits:
        raise ValueError(
            f"the method needs {what}, and {topology.name} with {topology.agents} agents is none; "
            f"take {instead}, or another method"
        )


# What methods register, in words and as checks.
DOUBLY_STOCHASTIC = {"graph": "doubly stochastic", "check": (doubly_stochastic,)}
ONE_GRAPH = {
    "graph": "static, undirected, doubly stochastic",
    "check": (static, undirected, doubly_stochastic),
}
