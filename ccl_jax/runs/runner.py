"""Runs one Config: builds everything, trains, and leaves a run directory behind."""

import contextlib
import dataclasses
import datetime
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from ccl_jax import algorithms, graphs, models, training
from ccl_jax.algorithms import capabilities
from ccl_jax.data import augment, batches, datasets, partition
from ccl_jax.data.feeds import Feed
from ccl_jax.devices import hosts, parallel
from ccl_jax.network import Network, compression
from ccl_jax.runs import cautions, environment, inputs, plots, tensorboard, terminal
from ccl_jax.runs.checkpoints import Autosave, Checkpoints, Stopped
from ccl_jax.runs.config import MAY_DIFFER, Config
from ccl_jax.runs.directory import RunDirectory, made_with
from ccl_jax.runs.signals import leaving, stop_signals
from ccl_jax.runs.summary import results_table, summarize
from ccl_jax.training import loop, schedules
from ccl_jax.training.evaluation import Evaluator
from ccl_jax.training.progress import Progress, Row

# One virtual CPU device an agent is fastest, up to a number that is still quick to compile for.
MOST_CPU_DEVICES = 64

# Steps in one program where dispatching one takes longer than a small model's step.
CHUNK_STEPS = 50

# How often --on_divergence=rollback goes back, each time with a tenth of the learning rate.
ROLLBACKS = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """A Config with everything built and checked, ready to train. Nothing is written yet.

    Attributes are what their types say.
    """

    config: Config
    directory: RunDirectory
    data: inputs.Data
    plan: parallel.Plan
    network: Network
    algorithm: algorithms.Algorithm
    model: Any
    objective: training.Objective
    schedule: Any
    augmentation: augment.Augmentation

    def at(self, path: Path) -> "Run":
        """The same run in another directory."""
        config = self.config.replace(workdir=str(path))
        return dataclasses.replace(self, config=config, directory=RunDirectory(path))

    @property
    def dataset(self) -> datasets.Dataset | datasets.StreamedDataset:
        """Where images come from."""
        return self.data.dataset

    @property
    def partition(self) -> partition.Partition:
        """Who holds which training samples."""
        return self.data.partition


@hosts.together()
def prepare(
    config: Config, dataset: datasets.Dataset | datasets.StreamedDataset | None = None
) -> Run:
    """Builds and checks all parts of a run, and writes nothing.

    Args:
      config: The settings.
      dataset: The dataset, if it is loaded already.

    Raises:
      ValueError: Something in the settings, the data or the work directory does not fit.
    """
    directory = RunDirectory(config.workdir or new_workdir(config))
    if config.resume:
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        directory.check_same(dataclasses.asdict(config), MAY_DIFFER, defaults)
    else:
        directory.check_free()
    if config.tensorboard:
        tensorboard.check()
    if config.compile_cache is not None:
        jax.config.update("jax_compilation_cache_dir", config.compile_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    algorithm = algorithms.make(config.algorithm, **config.hyperparameters())
    method = algorithms.lookup(config.algorithm)
    most = min(config.agents * config.batch_devices, MOST_CPU_DEVICES)
    parallel.request_cpu_devices(-(-(config.devices or most) // (config.num_processes or 1)))
    devices = config.devices or parallel.usable_devices(config.agents, config.batch_devices)
    plan = parallel.Plan(devices, config.spmd, config.batch_devices)
    # Data before the graph: a graph of far too many agents would not fit in memory.
    loaded = inputs.load(config, dataset)
    dataset = loaded.dataset
    topology = graphs.make(
        config.topology,
        config.agents,
        weights=config.weights,
        stochastic=method.stochastic,
        seed=config.seed,
    )
    method.check(topology, **config.hyperparameters())
    network = Network(
        topology,
        devices=plan.blocks,
        local_steps=config.local_steps,
        gossip_steps=config.gossip_steps,
        compressor=compression.make(config.compression),
        faults=config.faults(),
    )
    capabilities.check(method, network, **config.hyperparameters())
    steps = batches.steps_per_epoch(loaded.partition, config.batch_size)
    objective = training.Objective(
        num_classes=dataset.num_classes,
        lambda_m=config.lambda_m,
        lambda_d=config.lambda_d,
        feature_losses=config.feature_losses(),
        distance=config.distance,
        clip_norm=config.clip_norm,
        measure=config.measure_heterogeneity,
        lambda_warmup_steps=steps * config.lambda_warmup_epochs,
    )
    model = models.make(
        config.model, dataset.num_classes, norm=config.norm, dtype=jnp.dtype(config.dtype)
    )
    models.shapes(model, dataset.image_shape)  # Raises where images are too small for the model.
    schedule = schedules.make(
        config.schedule, config.lr, steps * config.epochs, steps * config.warmup_epochs
    )
    return Run(
        config,
        directory,
        loaded,
        plan,
        network,
        algorithm,
        model,
        objective,
        schedule,
        augment.make(config.augment, dataset.image_shape[:2]),
    )


def main(config: Config, given: frozenset[str] = frozenset()) -> None:
    """The main of most experiments: one run, and its result on the terminal."""
    del given
    run = prepare(config)
    hosts.tell(results_table([execute(run)]))
    hosts.tell(f"run directory: {run.directory.path}")


def train(config: Config) -> dict[str, Any]:
    """One run from its settings to its summary; `prepare` and `execute` in one."""
    return execute(prepare(config))


def execute(run: Run) -> dict[str, Any]:
    """Trains, writes the run directory and returns the summary.

    With `resume` in its config, the run that is there goes on; one that has ended is left alone.

    Raises:
      loop.Diverged: A loss is not finite; all metrics so far are on disk.
      checkpoint.Stopped: SIGTERM or SIGINT came; the run is saved and can be resumed.
      OSError: A file could not be written.
      ValueError: The work directory cannot be used, or another run is using it.
    """
    with contextlib.ExitStack() as stack:
        with hosts.together():
            if run.config.workdir is None:
                run.directory.claim()
            stack.enter_context(run.directory.lock(_note))
            if not run.config.resume:
                run.directory.create(dataclasses.asdict(run.config) | {"made_with": made_with()})
        with hosts.together():
            run.directory.check_shared()
        stop = stack.enter_context(stop_signals())
        if run.config.resume:
            if (summary := run.directory.summary()) is not None:
                _note(f"{run.directory.path} has ended already; this is its result")
                return summary
            _warn_of_other_makers(run.directory)
        return _train(run, stop)


def _train(run: Run, stop: Callable[[], int]) -> dict[str, Any]:
    config, topology = run.config, run.network.topology
    counts = partition.class_counts(
        run.partition, run.dataset.train_labels, run.dataset.num_classes
    )
    for note in (*run.data.notes, *cautions.of(config)):
        _note(f"note: {note}")
    run.directory.write_json("partition.json", run.data.report)
    if hosts.is_first() and config.figures:
        with plots.attempt(file := run.directory.figures / "partition.png"):
            plots.class_bubbles(
                counts,
                file,
                f"{config.dataset}, {config.partition} split, alpha {config.alpha:g}",
                run.dataset.class_names,
            )
    feed = inputs.make_feed(run.data, config, run.plan.agents_here(config.agents))
    evaluator = Evaluator(
        run.model, run.dataset, workers=config.workers, max_unreadable=config.max_unreadable
    )

    def evaluate(state: training.TrainState):
        state = run.plan.fetch(state._replace(key=()))
        return evaluator(run.algorithm.models(state.params, state.algorithm), state.model_state)

    rollbacks = None
    board = contextlib.nullcontext(lambda row: None)
    if hosts.is_first() and config.tensorboard:
        board = tensorboard.scalars(run.directory.path / "tensorboard")
    with Checkpoints(run.directory.checkpoints, config.keep) as saved, board as show:
        autosave = Autosave(
            saved, config.epochs, config.checkpoint_every, config.checkpoint_minutes, stop
        )
        while True:
            with _nothing_to_save(stop):
                state, start = _begin(run, saved)
            if rollbacks is not None:
                start = start._replace(rollbacks=rollbacks)
            run.directory.replace_metrics(start.rows)
            rows: list[Row] = list(start.rows)
            parameters = sum(x[0].size for x in jax.tree.leaves(state.params))
            with progress_bar(run, start.step) as bar:

                def on_epoch(row: Row, rows: list[Row] = rows, bar: tqdm = bar) -> None:
                    row |= inputs.throughput(run.data, feed, row)
                    rows.append(row)
                    run.directory.log(row)
                    show(row)
                    shown = {"loss": f"{row['cross_entropy']:.3f}"}
                    if "local_accuracy_mean" in row:
                        shown["local"] = f"{100 * row['local_accuracy_mean']:.1f}%"
                        shown["consensus"] = f"{100 * row['consensus_accuracy']:.1f}%"
                    bar.set_postfix(shown)

                @contextlib.contextmanager
                def compiling(
                    programs: str, step: int = start.step, bar: tqdm = bar
                ) -> Iterator[None]:
                    if bar.disable:
                        with _nothing_to_save(stop, step):
                            yield
                        return
                    said = terminal.waiting(f"compiling {programs} of {described(config)}")
                    with said, _nothing_to_save(stop, step, before="\n"):
                        yield
                    bar.unpause()  # Its speed is that of the steps.

                try:
                    state, timing = loop.fit(
                        state,
                        make_data_step(run, feed, start.rollbacks),
                        feed,
                        epochs=config.epochs,
                        evaluate=evaluate,
                        eval_every=config.eval_every,
                        plan=run.plan,
                        start=start,
                        skip_divergence=config.on_divergence == "skip",
                        chunk_steps=chunk_steps(run),
                        loss_weights=run.objective.weights,
                        compiling=compiling,
                        on_epoch=on_epoch,
                        on_step=lambda step, bar=bar: bar.update(),
                        on_progress=autosave,
                    )
                    break
                except loop.Diverged as error:
                    rollbacks = start.rollbacks + 1
                    if config.on_divergence != "rollback" or rollbacks > ROLLBACKS:
                        raise
                    with hosts.together():
                        saved.wait()
                        twice = start.rollbacks and saved.steps()[-1:] == [start.step]
                    if twice:
                        saved.drop(start.step)  # It has led here twice.
                    _note(
                        f"{error}; going back to the last checkpoint (of steps {saved.steps()}) or "
                        f"the start, with {10**rollbacks} times less learning rate"
                    )

    summary = summarize(
        config,
        topology,
        counts,
        rows[-1],
        timing,
        parameters=parameters,
        best_checkpoint=saved.best(),
        objective=dataclasses.asdict(run.objective),
    )
    run.directory.write_json("summary.json", summary)
    if hosts.is_first() and config.figures:
        with plots.attempt(file := run.directory.figures / "accuracy.png"):
            plots.accuracy_curves({config.label: rows}, file)
    return summary


@contextlib.contextmanager
def _nothing_to_save(stop: Callable[[], int], step: int = 0, before: str = "") -> Iterator[None]:
    """Before the first step, a signal ends the process even while something compiles.

    Args:
      stop: As for `_train`.
      step: Steps that are saved.
      before: Ends the line that stderr is in.

    Raises:
      Stopped: A signal has come already.
    """
    with leaving(lambda number: f"{before}error: {Stopped(number, step)}\n"):
        (signal,) = hosts.largest(stop())
        if signal:
            raise Stopped(signal, step)
        yield


def make_data_step(run: Run, feed: Feed, rollbacks: int = 0) -> loop.Step:
    """The whole step of a run, with a tenth of the learning rate for every rollback."""
    schedule = run.schedule
    if rollbacks:
        schedule = lambda step: run.schedule(step) * 0.1**rollbacks
    step = training.make_step(
        run.model,
        run.algorithm,
        run.network,
        run.objective,
        schedule,
        gossip_batch_stats=run.config.gossip_batch_stats,
    )
    return loop.make_data_step(run.plan.wrap(step), feed, run.dataset, run.augmentation)


def chunk_steps(run: Run) -> int:
    """Steps in one program: as asked for, or what suits the device and the data."""
    alone = jax.default_backend() == "cpu" or isinstance(run.dataset, datasets.StreamedDataset)
    return run.config.chunk_steps or (1 if alone else CHUNK_STEPS)


def _begin(run: Run, saved: Checkpoints) -> tuple[training.TrainState, Progress]:
    """The newest checkpoint that is whole, or the start where there is none yet."""
    with hosts.together():
        saved.wait()  # Then all processes see the same ones.
    state = training.init_state(
        run.model,
        run.algorithm,
        run.network,
        run.objective,
        run.dataset.image_shape,
        jax.random.key(run.config.seed),
        gossip_batch_stats=run.config.gossip_batch_stats,
    )
    if saved.steps():
        state, progress = saved.restore(state)
        _note(f"{run.directory.path} goes on after step {progress.step}")
        return state, progress
    if run.config.resume:
        _note(f"{run.directory.path} has no checkpoint yet; it starts from the beginning")
    return state, Progress()


def _note(text: str) -> None:
    if hosts.is_first():
        print(text, file=sys.stderr)


def _warn_of_other_makers(directory: RunDirectory) -> None:
    """A run that goes on with other versions or devices is not the same to the bit."""
    before, now = directory.made_with(), made_with()
    different = environment.differences(before, now)
    if different:
        _note(f"warning: {directory.path} was started with others: {', '.join(different)}")


def new_workdir(config: Config) -> str:
    """A directory name that no run has yet: runs/<dataset>-<date>-<time>."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = Path("runs") / f"{config.dataset}-{stamp}"
    others = (Path(f"{name}-{k}") for k in range(2, 1000))
    return str(name if not name.exists() else next(p for p in others if not p.exists()))


def described(config: Config) -> str:
    """What a run trains, as `CCL + qg-dsgdm-n: digits-cnn, 8 agents`."""
    return f"{config.label}: {config.model}, {config.agents} agents"


def progress_bar(run: Run, done: int) -> tqdm:
    """A bar over the steps of a run, on stderr; `done` of them are done."""
    steps = batches.steps_per_epoch(run.partition, run.config.batch_size) * run.config.epochs
    return tqdm(
        total=steps,
        initial=done,
        delay=1e-6,  # Not before the first step: until then it is said what is compiled.
        desc=run.config.label,
        unit="step",
        disable=not (run.config.progress and hosts.is_first()),
    )
