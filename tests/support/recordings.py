"""Recordings for replays: recorded ones with something changed, and ones made by float64 recursions."""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import networkx as nx
import numpy as np

from experiments.parity import quadratics
from tests.support.recursions import Problem

Trace = dict[str, np.ndarray]


def changed(
    trace: Trace,
    entries: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType({}),
    **config: Any,
) -> Trace:
    """A recording with other settings, and with some of its arrays put through functions."""
    settings = json.loads(str(trace["config"])) | config
    arrays = {name: change(trace[name]) for name, change in entries.items()}
    return trace | {"config": np.array(json.dumps(settings))} | arrays


def metropolis(graph: nx.Graph) -> np.ndarray:
    """Mixing matrix with Metropolis weights."""
    links = nx.to_numpy_array(graph, nodelist=sorted(graph))
    degree = links.sum(axis=1)
    w = links / (np.maximum.outer(degree, degree) + 1)
    return w + np.diag(1 - w.sum(axis=1))


def check_replay(recursion: Callable[[Problem], np.ndarray], problem: Problem, **more: Any) -> None:
    """A recursion's run of a problem, as its recording with `more` entries, is reproduced."""
    trace = {
        "A": problem.a,
        "c": problem.c,
        "x0": problem.start,
        "W": problem.w,
        "lr": problem.lr,
        "x": recursion(problem),
        "config": np.array(json.dumps(problem.config)),
    }
    result = quadratics.replay(trace | more)
    assert np.abs(trace["x"]).max() < 100  # a run that blows up compares nothing
    assert result["passed"], result
