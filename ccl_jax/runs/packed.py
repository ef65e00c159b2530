"""Runs that differ in their seed, trained as one program; each leaves what it would leave alone."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ccl_jax.algorithms import get
from ccl_jax.data import batches
from ccl_jax.data.base import StreamedDataset
from ccl_jax.devices import hosts
from ccl_jax.runs import checksums, inputs, runner, trainer
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.runs.reporter import Reporter, nothing_to_save
from ccl_jax.runs.runner import Run
from ccl_jax.runs.signals import stop_signals
from ccl_jax.training import pack
from ccl_jax.training.ledger import Diverged
from ccl_jax.training.progress import Progress, Row

Result = dict[str, Any] | Diverged


def obstacle(run: Run) -> str | None:
    """What runs of these settings have that keeps them from being one program; None if nothing."""
    config, method = run.config, get(run.config.algorithm)
    found = {
        "several processes": hosts.count() > 1,
        "--on_divergence=rollback": config.on_divergence == "rollback",
        "a streamed dataset": isinstance(run.dataset, StreamedDataset),
        "faults, which are drawn by the seed": run.network.faults.any,
        "--message_noise, which is drawn by the seed": run.network.message_noise > 0,
        "--feature_shift": bool(config.feature_shift),
        "--spmd=pmap": run.plan.form == "pmap" and run.plan.devices > 1,
        f"{config.algorithm}, which talks by chance": method.capabilities
        and method.capabilities.by_chance,
    }
    return next((name for name, there in found.items() if there), None)


def program_of(run: Run) -> dict[str, Any]:
    """What must be equal in runs that are one program, by what it is called."""
    dataset, topology = run.dataset, run.network.topology
    shapes = dataset.train_images.shape, run.partition.agents
    return {
        "steps of an epoch": batches.steps_per_epoch(run.partition, run.config.batch_size),
        "steps done": _steps_done(run),
        "graph": checksums.digest(topology.weights, topology.neighbors, topology.mask),
        "test set": checksums.digest(dataset.test_images, dataset.test_labels),
        "training set": (shapes, dataset.mean, dataset.std, dataset.scale),
    }


def _steps_done(run: Run) -> int:
    """Where the run goes on: the step of the newest checkpoint that is whole, or 0."""
    saved = Checkpoints(run.directory.checkpoints, warn=lambda text: None)
    return saved.choose("last") if run.config.resume and saved.steps() else 0


def execute(runs: Sequence[Run]) -> list[Result]:
    """`runner.execute` for runs whose `program_of` is equal; none of them has ended.

    Returns:
      A summary for each, or what its divergence says.

    Raises:
      Stopped, OSError, ValueError: As `runner.execute`; of all runs at once.
    """
    with contextlib.ExitStack() as stack:
        for run in runs:
            runner.open_directory(run, stack)
        stop = stack.enter_context(stop_signals())
        for run in runs:
            runner.go_on(run)
        stack.enter_context(runner.precision(runs[0].config))
        return _train(runs, stop, stack)


def _train(
    runs: Sequence[Run], stop: Callable[[], int], stack: contextlib.ExitStack
) -> list[Result]:
    first, seeds = runs[0], [run.config.seed for run in runs]
    for note in dict.fromkeys(note for run in runs for note in trainer.notes(run)):
        hosts.note(f"note: {note}")
    for run in runs:
        trainer.describe_data(run)
    saved = [
        stack.enter_context(Checkpoints(run.directory.checkpoints, run.config.keep)) for run in runs
    ]
    with nothing_to_save(stop):
        begun = [trainer.begin(run, own) for run, own in zip(runs, saved, strict=True)]
    states, starts = zip(*begun, strict=True)
    feeds = [inputs.make_feed(run.data, run.config) for run in runs]
    reporters = []
    for k, run in enumerate(runs):
        run.directory.replace_metrics(starts[k].rows)
        board = stack.enter_context(trainer.board_of(run))
        # One bar and one line an epoch, those of the first: all are at the same step.
        report = Reporter(run, feeds[k], starts[k], stop, board, shown=k == 0)
        reporters.append(stack.enter_context(report))
    parameters = trainer.count_parameters(states[0])
    reporters[0].opening(states[0], parameters)
    if not first.config.quiet:
        listed = ", ".join(map(str, seeds))
        hosts.note(f"seeds {listed} train as one program; what is shown is of seed {seeds[0]}")

    def log(k: int, row: Row) -> None:
        reporters[k].epoch(row)
        if "diverged" in row:
            hosts.note(f"seed {seeds[k]}: {row['diverged']}")

    models_of = trainer.make_models_of(first)
    autosave = trainer.make_autosave(first.config, _All(saved), stop)
    results = pack.fit(
        states,
        trainer.make_data_step(first, feeds[0]),
        feeds,
        starts=starts,
        **trainer.loop_options(first, feeds[0], models_of),
        compiling=reporters[0].compiling,
        on_epoch=log,
        on_step=lambda: reporters[0].step(0),
        due=autosave.due,
        on_progress=lambda take, done: autosave((take, done), next(iter(done.values()))),
    )

    def conclude(k: int) -> Result:
        if isinstance(results[k], Diverged):
            return results[k]
        state, timing = results[k]
        models = trainer.fetch_models(first, models_of(state))
        trained = trainer.Trained(reporters[k].rows, timing, parameters, models)
        saved[k].wait()
        return trainer.conclude(runs[k], trained, saved[k].best())

    return [conclude(k) for k in range(len(runs))]


class _All:
    """The checkpoints of several runs, saved at once; for `Autosave`."""

    def __init__(self, saved: Sequence[Checkpoints]) -> None:
        self._saved = saved

    def save(self, states: tuple[pack.Take, Mapping[int, Progress]], _: Progress) -> None:
        """Saves the runs that train."""
        take, progress = states
        for k, done in progress.items():
            self._saved[k].save(take(k), done)

    def wait(self) -> None:
        """Waits until all is on disk."""
        for saved in self._saved:
            saved.wait()
