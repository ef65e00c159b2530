"""Run directories with a checkpoint in which every agent has numbers of its own; nothing is trained."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from ccl_jax import algorithms, training
from ccl_jax.network import Network
from ccl_jax.runs import runner
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.runs.config import Config
from ccl_jax.runs.directory import RunDirectory
from ccl_jax.runs.facts import Facts
from ccl_jax.training.progress import Progress

# Epochs that were evaluated, by the step of their end: the best is not the last.
ACCURACY = {10: 0.25, 20: 0.75, 30: 0.5}


def facts(
    classes: int = 10, shape: tuple[int, int, int] = (8, 8, 1), scale: float = 255.0
) -> Facts:
    names = tuple(f"class {k}" for k in range(classes))
    channels = shape[2]
    return Facts(
        "made up", names, shape, max(shape[:2]), (0.4,) * channels, (0.3,) * channels, scale
    )


def save(path: Path, config: Config, about: Facts, steps: tuple[int, ...] = (30,)) -> None:
    """A run's config.json, dataset.json and checkpoints; a later step's numbers are larger by 1."""
    directory = RunDirectory(path)
    directory.create(dataclasses.asdict(config))
    directory.write_json("dataset.json", about._asdict())
    state = first_state(config, about)
    rows = []
    with Checkpoints(directory.checkpoints, keep=9) as saved:
        for epoch, step in enumerate(steps, start=1):
            rows.append({"epoch": epoch, "step": step, "consensus_accuracy": ACCURACY[step]})
            moved = _spread(state, float(step))
            saved.save(moved, Progress(step=step, epoch=epoch + 1, rows=tuple(rows)))
    directory.replace_metrics(rows)


def first_state(config: Config, about: Facts) -> training.TrainState:
    """The state that a run with these settings starts from."""
    return training.init_state(
        runner.make_model(config, about.num_classes),
        algorithms.make(config.algorithm, **config.hyperparameters()),
        Network(runner.make_topology(config)),
        training.Objective(about.num_classes),
        about.image_shape,
        jax.random.key(config.seed),
    )


def _spread(state: training.TrainState, step: float) -> training.TrainState:
    """Another model for every agent, other batch statistics, and other weights of push-sum."""
    rng = np.random.default_rng(int(step))

    def move(x):
        if not np.issubdtype(x.dtype, np.floating):
            return x
        return np.asarray(x) * rng.uniform(0.5, 1.5, x.shape).astype(np.float32)

    moved = {
        name: jax.tree.map(move, getattr(state, name))
        for name in ("params", "model_state", "algorithm")
    }
    return state._replace(step=np.int32(step), **moved)
