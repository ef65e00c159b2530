"""A run that test_kill.py forks from a process which has imported this, and kills."""

from multiprocessing.connection import Connection
from pathlib import Path

import jax

from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.runs.directory import RunDirectory
from ccl_jax.training.progress import Progress
from tests.support.small_run import FAMILIES, Experiment


def train(name: str, workdir: Path, parent: Connection, victim: bool) -> None:
    """Goes on with a run from its newest checkpoint, or starts it; saves after every step.

    Args:
      name: The method.
      workdir: The run directory.
      parent: Is told the number of steps done: 0 before anything else, then from where it goes on.
      victim: Do not end, but wait to be killed.
    """
    parent.send(0)
    jax.config.update("jax_disable_most_optimizations", True)
    experiment = Experiment(name, FAMILIES[name])
    directory = RunDirectory(workdir)
    with directory.lock(), Checkpoints(directory.checkpoints) as saved:
        state, start = saved.restore(experiment.first) or (experiment.first, Progress())
        directory.replace_metrics(start.rows)
        parent.send(start.step)
        experiment.run(
            state, start, on_epoch=directory.log, on_progress=saved.save, on_step=parent.send
        )
    if victim:
        parent.recv()
