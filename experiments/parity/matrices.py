"""Compares recorded mixing matrices of graphs over time with ours.

A recording has `W.<graph>` `[agents, agents]` or `W_t.<graph>` `[rounds, agents, agents]`; random
draws (`offsets.<graph>`, or `offset.<graph>` and `start.<graph>`, counted from 1) come from the file.
"""

import re
from typing import Any

import numpy as np

from ccl_jax.graphs import weighted
from experiments.parity import traces
from experiments.parity.traces import Trace

TOLERANCE = 1e-6  # absolute, on the weights

_GRAPH = re.compile(
    r"(?P<kind>base|simple|[DU]-EquiStatic|O[DU]-EquiDyn)(-complete)?_n(?P<n>[1-9]\d*)"
    r"(_k(?P<k>[1-9]\d*))?(_M\d+)?(_eta(?P<eta>\d+(\.\d+)?))?(_seed\d+)?"
)


def recognises(trace: Trace) -> bool:
    """Whether a recording is one of mixing matrices by name."""
    return any(name.startswith(("W.", "W_t.")) for name in trace)


def replay(trace: Trace) -> dict[str, Any]:
    """Builds every recorded graph.

    Returns:
      method, graphs (how many), max_error (absolute, over all entries), passed.

    Raises:
      ValueError: A graph is not offered, or an entry is missing or does not fit.
    """
    config = traces.read_config(trace, {"method": str})
    names = [name for name in trace if name.startswith(("W.", "W_t."))]
    error = 0.0
    for name in names:
        ours = _build(trace, name.partition(".")[2])
        axes = ("agents", "agents") if ours.ndim == 2 else ("rounds", "agents", "agents")
        traces.check_arrays(trace, {name: axes})
        if ours.shape != trace[name].shape:
            raise ValueError(f"the recording's {name} is {trace[name].shape}; ours is {ours.shape}")
        error = float(np.max([error, np.abs(ours - trace[name]).max()]))  # NaN stays.
    return {
        "method": config["method"],
        "graphs": len(names),
        "max_error": error,
        "passed": bool(error <= TOLERANCE),
    }


def _build(trace: Trace, graph: str) -> np.ndarray:
    """Our matrices of a recorded graph."""
    found = _GRAPH.fullmatch(graph)
    kind = found["kind"] if found else ""
    if not found or ((kind in ("base", "simple")) != bool(found["k"])):
        raise ValueError(f"the recorded graph {graph!r} is not offered: it is unknown here")
    agents = int(found["n"])
    if found["k"]:
        return {"base": weighted.base, "simple": weighted.simple_base}[kind](
            agents, int(found["k"])
        )
    if kind.endswith("EquiStatic"):
        offsets = _draws(trace, f"offsets.{graph}")
        return weighted.equi_static_matrix(agents, offsets, directed=kind.startswith("D"))
    offsets = _draws(trace, f"offset.{graph}")
    directed = kind.startswith("OD")
    starts = [None] * len(offsets) if directed else _draws(trace, f"start.{graph}") - 1
    eta = float(found["eta"] or 1)
    if len(starts) != len(offsets):
        raise ValueError(
            f"the recording has {len(offsets)} offsets and {len(starts)} starts of {graph}; it must "
            "have one of each a round"
        )
    pairs = zip(offsets, starts, strict=True)
    return np.stack([weighted.equi_dynamic_matrix(agents, p, eta, s) for p, s in pairs])


def _draws(trace: Trace, name: str) -> np.ndarray:
    traces.check_arrays(trace, {name: ("draws",)}, integers=(name,))
    return trace[name]
