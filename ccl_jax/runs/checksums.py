"""What a run is made of, as checksums: one that goes on with others would be another run.

Its settings do not tell: files may have changed where `data_dir`, `file:PATH` or an extension lead, and
of several processes each reads its own.
"""

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from ccl_jax.data.base import Dataset
from ccl_jax.devices import hosts
from ccl_jax.runs import environment, own_code
from ccl_jax.runs.directory import made_with, plain

if TYPE_CHECKING:
    from ccl_jax.runs.runner import Run

# What a run cannot go on without.
_FIXED = {"split": "split (labels, or who holds which image)", "graph": "graph (or other weights)"}

# Settings of which each of several processes may have its own.
_OF_A_PROCESS = (
    *("process_id", "coordinator", "join_seconds", "workdir", "data_dir", "verify_checksums"),
    *("workers", "compile_cache", "quiet", "progress", "figures", "tensorboard"),
)


def of(run: "Run") -> dict[str, dict[str, str]]:
    """Checksums of the split, the graph and (but streamed ones) the images, and of `own_code`."""
    dataset, topology, held = run.dataset, run.network.topology, run.partition.indices
    sizes = np.array([len(own) for own in held])
    data = {
        "split": digest(dataset.train_labels, dataset.test_labels, *held, sizes),
        "graph": digest(topology.weights, topology.neighbors, topology.mask),
    }
    if isinstance(dataset, Dataset):
        data["images"] = digest(dataset.train_images, dataset.test_images)
    short = {name: found[:12] for name, found in data.items()}
    return {"data": short, "own_code": own_code.checksums(run.config)}


def agree(run: "Run") -> None:
    """Makes sure that all processes are about to train the same run.

    Raises:
      ValueError: They are not.
    """
    settings = plain(dataclasses.asdict(run.config))
    shared = {name: value for name, value in settings.items() if name not in _OF_A_PROCESS}
    hosts.agree(shared | run.made_of["data"] | run.made_of["own_code"])


def check(run: "Run") -> None:
    """Makes sure that a run can go on, and tells what may keep it from being equal to the bit.

    That can be other versions, code, devices or images: another decoder has others by a little. What
    the run directory does not tell is passed over, as an older version tells less.

    Raises:
      ValueError: It would train on another split or graph.
    """
    before, path = run.directory.made_with(), run.directory.path
    now, then = run.made_of["data"], before.get("data", {})
    changed = [what for name, what in _FIXED.items() if then.get(name, now[name]) != now[name]]
    if changed:
        raise ValueError(
            f"{path} was started with another {' and another '.join(changed)}: files that it read have "
            "changed since; bring back those of then, or start another run"
        )
    different = environment.differences(before, made_with() | run.made_of)
    if different:
        hosts.note(f"warning: {path} was started with others: {', '.join(different)}")


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the numbers of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()
