"""Which methods stay what they are when messages are lost, and why the others do not."""

from typing import Any

import numpy as np

from ccl_jax.algorithms import base
from ccl_jax.graphs.topology import Topology
from ccl_jax.network.faults import Faults


def check(faults: Faults, method: base.Method, topology: Topology, **hyperparameters: Any) -> None:
    """Makes sure that a method stays what it is under faults.

    Args:
      faults: What fails.
      method: The method.
      topology: The graph.
      **hyperparameters: Those that were given.

    Raises:
      ValueError: It does not; the message says why and what to do.
    """
    if not faults.any:
        return
    name, settings = method.name, method.hyperparameters | method.fixed | hyperparameters
    if name in ("all-reduce", "fedavg") or settings.get("start") == "global":
        _refuse(name, "takes exact averages over all agents, which no lost message can reach")
    if name == "relaysgd" and settings["fill"] != "counts":
        _refuse(name, "counts what has not arrived as the start; give --hparam fill=counts")
    # RelaySGD divides by the number of models that did arrive, whatever the graph.
    if base.static in method.checks and name != "relaysgd":
        _refuse(name, "is made for a graph that does not change, which losses make it do")
    both_ways = (base.undirected, base.tree, base.doubly_stochastic)
    if faults.one_way and any(check in method.checks for check in both_ways):
        _refuse(name, "needs links that fail in both directions; leave out drop_one_way")
    if base.doubly_stochastic in method.checks and not np.allclose(
        topology.weights, topology.weights.transpose(0, 2, 1)
    ):
        _refuse(name, "keeps its sums only with symmetric weights; take another graph")
    keeps_sums = base.doubly_stochastic in method.checks or method.stochastic == "column"
    if faults.straggle and (keeps_sums or name == "relaysgd"):
        _refuse(name, "keeps sums over all agents, which old messages break; leave out straggle")


def _refuse(name: str, why: str) -> None:
    raise ValueError(f"{name} {why}; or take another method for a network with faults")
