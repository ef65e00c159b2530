"""Graphs: who hears whom, with which mixing weights; by name, from networkx, a file or a matrix."""

from ccl_jax.graphs.named import GRAPHS, Graph, catalogue, describe, from_networkx, make
from ccl_jax.graphs.topology import Edges, Topology, from_matrix
from ccl_jax.graphs.weights import WEIGHTS

__all__ = [
    "GRAPHS",
    "WEIGHTS",
    "Edges",
    "Graph",
    "Topology",
    "catalogue",
    "describe",
    "from_matrix",
    "from_networkx",
    "make",
]
