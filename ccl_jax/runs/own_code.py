"""The files of a user's own that have a part in a run: one whose code has changed is another run."""

import functools
import hashlib
import re
import sys
from pathlib import Path

from ccl_jax import algorithms, graphs, losses, models
from ccl_jax.names import shortest_ends
from ccl_jax.runs.config import Config


def checksums(config: Config) -> dict[str, str]:
    """The files beside ccl_jax that define a run's method, model, losses and graph.

    Returns:
      Name -> the beginning of its SHA-256; of several of one name, with their folders.
    """
    # A graph may be made of others: alternating:ring+mine.
    graph_names = re.split(r"[:+]", config.topology)
    used = [
        algorithms.get(config.algorithm).build,
        models.MODELS[config.model],
        *(losses.get(name).loss for name, _ in config.feature_losses()),
        *(graphs.GRAPHS[name].build for name in graph_names if name in graphs.GRAPHS),
    ]
    used = [each.func if isinstance(each, functools.partial) else each for each in used]
    ours = Path(__file__).parents[1]
    modules = (sys.modules.get(getattr(each, "__module__", None) or "") for each in used)
    every = {Path(file) for module in modules if (file := getattr(module, "__file__", None))}
    files = [file for file in sorted(every) if ours not in file.parents and file.is_file()]
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for name, file in zip(shortest_ends(files), files, strict=True)
    }
