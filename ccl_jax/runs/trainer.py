"""Trains a run that is ready: from its start or its last checkpoint to its summary."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from ccl_jax import training
from ccl_jax.data import datasets, partition
from ccl_jax.data.feeds import Feed
from ccl_jax.devices import hosts
from ccl_jax.devices.parallel import Step
from ccl_jax.runs import cautions, forward, inputs, pictures, plots, tensorboard
from ccl_jax.runs.checkpoints import Autosave, Checkpoints
from ccl_jax.runs.config import Config
from ccl_jax.runs.facts import Facts
from ccl_jax.runs.reporter import Reporter, nothing_to_save
from ccl_jax.runs.settings import AUTO
from ccl_jax.runs.summary import summarize
from ccl_jax.training import evaluation, loop
from ccl_jax.training.evaluation import Evaluator
from ccl_jax.training.merge import make_merge
from ccl_jax.training.progress import Progress, Row

if TYPE_CHECKING:
    from ccl_jax.runs.runner import Run

# Steps in one program where dispatching one takes longer than a small model's step.
CHUNK_STEPS = 50

# How often --on_divergence=rollback goes back, each time with a tenth of the learning rate.
ROLLBACKS = 3

# Images in the picture of features: so few that each can be told from the others.
IMAGES_A_CLASS, MOST_CLASSES = 15, 8


ModelsOf = Callable[[training.TrainState], tuple[Any, Any]]


class Trained(NamedTuple):
    """What training leaves.

    Attributes:
      rows: The rows of metrics of all epochs.
      timing: Where the time went.
      parameters: Number of parameters of one agent's model.
      variables: The agents' models, leaves `[agents, ...]`, in the memory of each process.
    """

    rows: list[Row]
    timing: loop.Timing
    parameters: int
    variables: dict[str, Any]


def train(run: "Run", stop: Callable[[], int]) -> dict[str, Any]:
    """Trains, and writes all files of the run directory but the first ones.

    Args:
      run: Its directory is locked, and holds its config.
      stop: The signal that asks for an end; 0 if none has come.

    Returns:
      The summary.
    """
    for note in notes(run):
        hosts.note(f"note: {note}")
    describe_data(run)
    with Checkpoints(run.directory.checkpoints, run.config.keep) as saved, board_of(run) as board:
        trained = _train_on(run, saved, stop, board)
    return conclude(run, trained, saved.best())


def notes(run: "Run") -> list[str]:
    """What a user should know of a run before it trains, one line each."""
    return [*run.data.notes, *cautions.of(run.config)]


def describe_data(run: "Run") -> None:
    """Writes what is known of a run's data before it trains."""
    config, counts = run.config, _class_counts(run)
    run.directory.write_json("dataset.json", Facts.of(run.dataset)._asdict())
    run.directory.write_json("partition.json", run.data.report)
    title = f"{config.dataset}, {config.partition} split, alpha {config.alpha:g}"
    draw = lambda file: plots.class_bubbles(counts, file, title, run.dataset.class_names)
    _draw(run, "partition.png", draw)


def _class_counts(run: "Run") -> np.ndarray:
    labels = run.dataset.train_labels
    return partition.class_counts(run.partition, labels, run.dataset.num_classes)


def conclude(run: "Run", trained: Trained, best_checkpoint: int | None) -> dict[str, Any]:
    """Writes the summary of a run and draws its figures.

    Args:
      run: The run.
      trained: What training has left.
      best_checkpoint: Step of the best one that is kept.

    Returns:
      The summary.
    """
    config, rows, variables = run.config, trained.rows, trained.variables
    summary = summarize(
        config,
        run.network.topology,
        _class_counts(run),
        rows[-1],
        trained.timing,
        parameters=trained.parameters,
        best_checkpoint=best_checkpoint,
        objective=dataclasses.asdict(run.objective),
    )
    # Results are on disk before figures are drawn.
    run.directory.write_json("summary.json", summary)
    curve = {config.label: rows}
    draw = lambda file: plots.accuracy_curves(curve, file, local_steps=config.local_steps)
    _draw(run, "accuracy.png", draw)
    if config.lambda_m or config.lambda_d or config.measure_heterogeneity:
        _draw(run, "features.png", lambda file: draw_features(run, variables, file))
    return summary


def _train_on(
    run: "Run", saved: Checkpoints, stop: Callable[[], int], board: Callable[[Row], None]
) -> Trained:
    """From the newest checkpoint to the end; goes back to one where the settings say so."""
    feed = inputs.make_feed(run.data, run.config, run.plan.agents_here(run.config.agents))
    rollbacks = None
    while True:
        with nothing_to_save(stop):
            state, start = begin(run, saved)
        if rollbacks is not None:
            start = start._replace(rollbacks=rollbacks)
        run.directory.replace_metrics(start.rows)
        try:
            with Reporter(run, feed, start, stop, board) as reporter:
                return _fit(run, state, start, feed, saved, stop, reporter)
        except loop.Diverged as error:
            rollbacks = _roll_back(run, saved, start, error)


def _fit(
    run: "Run",
    state: training.TrainState,
    start: Progress,
    feed: Feed,
    saved: Checkpoints,
    stop: Callable[[], int],
    reporter: "Reporter",
) -> Trained:
    models_of = make_models_of(run)
    autosave = make_autosave(run.config, saved, stop)
    parameters = count_parameters(state)
    reporter.opening(state, parameters)
    state, timing = loop.fit(
        state,
        make_data_step(run, feed, start.rollbacks),
        feed,
        start=start,
        **loop_options(run, feed, models_of),
        compiling=reporter.compiling,
        on_epoch=reporter.epoch,
        on_step=reporter.step,
        due=autosave.due,
        on_progress=autosave,
    )
    return Trained(reporter.rows, timing, parameters, fetch_models(run, models_of(state)))


def make_models_of(run: "Run") -> ModelsOf:
    """Makes a function of a state that returns the parameters and statistics in use."""
    in_use = jax.jit(run.algorithm.models)
    return lambda state: (in_use(state.params, state.algorithm), state.model_state)


def fetch_models(run: "Run", models: tuple[Any, Any]) -> dict[str, Any]:
    """The agents' models in the memory of each process, by flax's collections."""
    params, model_state = run.plan.fetch(models)
    return {"params": params, **model_state}


def count_parameters(state: training.TrainState) -> int:
    """Numbers in one agent's model."""
    return sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(state.params))


def make_autosave(config: Config, saved: Any, stop: Callable[[], int]) -> Autosave:
    """Saves when the settings say so; `saved` is as for `Autosave`."""
    every, minutes = config.checkpoint_every, config.checkpoint_minutes
    return Autosave(saved, config.epochs, every, minutes, stop)


def loop_options(run: "Run", feed: Feed, models_of: ModelsOf) -> dict[str, Any]:
    """What the training loop has to know of a run's settings, for one run or several at once."""
    config = run.config
    evaluator = Evaluator(
        run.model,
        run.dataset,
        plan=run.plan,
        workers=config.workers,
        max_unreadable=config.max_unreadable,
    )
    return dict(
        epochs=config.epochs,
        evaluate=lambda state: evaluator(*models_of(state)),
        eval_every=epochs_between_evaluations(run, feed),
        eval_first=config.eval_every == AUTO,
        plan=run.plan,
        skip_divergence=config.on_divergence == "skip",
        chunk_steps=chunk_steps(run),
        loss_weights=run.objective.weights,
        merge=make_merge(run.network.topology, run.plan) if config.final_merge else None,
    )


def _roll_back(run: "Run", saved: Checkpoints, start: Progress, error: loop.Diverged) -> int:
    """How often the run has then gone back to a checkpoint.

    Raises:
      Diverged: The settings do not ask for it, or it has been often enough.
    """
    rollbacks = start.rollbacks + 1
    if run.config.on_divergence != "rollback" or rollbacks > ROLLBACKS:
        raise error
    with hosts.together():
        saved.wait()
        again = start.rollbacks and saved.steps()[-1:] == [start.step]
    if again:
        # It diverged from this checkpoint with less learning rate, too: take the one before.
        saved.drop(start.step)
    hosts.note(
        f"{error}; going back to the last checkpoint (of steps {saved.steps()}) or the start, with "
        f"{10**rollbacks} times less learning rate"
    )
    return rollbacks


def begin(run: "Run", saved: Checkpoints) -> tuple[training.TrainState, Progress]:
    """The newest checkpoint that is whole, or the start where there is none yet.

    Raises:
      ValueError: Not all processes see the same one.
    """
    with hosts.together():
        saved.wait()
    state, progress = first_state(run), Progress()
    if saved.steps():
        state, progress = saved.restore(state)
        hosts.note(f"{run.directory.path} goes on after step {progress.step}")
    elif run.config.resume:
        hosts.note(f"{run.directory.path} has no checkpoint yet; it starts from the beginning")
    # A shared file system may show a new checkpoint to some of the processes later than to others.
    hosts.agree({"the step of the newest checkpoint": progress.step})
    return state, progress


def first_state(run: "Run") -> training.TrainState:
    """The state of a run before its first step."""
    return training.init_state(
        run.model,
        run.algorithm,
        run.network,
        run.objective,
        run.dataset.image_shape,
        jax.random.key(run.config.seed),
        gossip_batch_stats=run.config.gossip_batch_stats,
    )


def make_step(run: "Run", rollbacks: int = 0) -> Step:
    """`step(state, batch) -> (state, metrics)` of all agents of a run, over its devices.

    Args:
      run: The run.
      rollbacks: For each, the learning rate is a tenth.
    """
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
    return run.plan.wrap(step)


def make_data_step(run: "Run", feed: Feed, rollbacks: int = 0) -> loop.Step:
    """The same with the way from a feed's items to a batch in front of it."""
    step = make_step(run, rollbacks)
    return loop.make_data_step(step, feed, run.dataset, run.augmentation)


def epochs_between_evaluations(run: "Run", feed: Feed) -> int:
    """As asked for, or so that they cost under a tenth of training; the same on every machine."""
    config = run.config
    if config.eval_every != AUTO:
        return config.eval_every
    neighbors = int(run.network.topology.mask.sum(axis=-1).max())
    passes = run.objective.passes(neighbors, crossed=run.algorithm.combine is not None)
    shown = (config.agents + 1) * len(run.dataset.test_labels)
    return evaluation.interval(feed.steps * config.agents * config.batch_size * passes, shown)


def chunk_steps(run: "Run") -> int:
    """Steps in one program: as asked for, or what suits the device and the data."""
    alone = jax.default_backend() == "cpu" or isinstance(run.dataset, datasets.StreamedDataset)
    return run.config.chunk_steps or (1 if alone else CHUNK_STEPS)


def draw_features(run: "Run", variables: dict[str, Any], file: Path) -> None:
    """Draws the features that two neighbours have of the same test images.

    Args:
      run: The run.
      variables: The agents' models, leaves `[agents, ...]`.
      file: Where to.
    """
    topology = run.network.topology
    pairs = np.argwhere(topology.mask)
    if not len(pairs):
        return
    hop, one, slot = pairs[0]
    pair = (int(one), int(topology.neighbors[hop, one, slot]))
    labels = run.dataset.test_labels
    chosen = np.concatenate(
        [np.flatnonzero(labels == k)[:IMAGES_A_CLASS] for k in np.unique(labels)[:MOST_CLASSES]]
    )
    images = jax.numpy.asarray(inputs.test_images(run.dataset, chosen))
    facts, pick = Facts.of(run.dataset), lambda k: jax.tree.map(lambda x: x[k], variables)
    of = lambda k: forward.features_and_logits(run.model, facts, pick(k), images)[0]
    pictures.features(
        tuple(f"agent {k}" for k in pair),
        np.stack([of(k) for k in pair]),
        labels[chosen],
        run.dataset.class_names,
        file,
        f"{run.config.label}: features of two neighbours on the same test images",
    )


def _draw(run: "Run", name: str, draw: Callable[[Path], None]) -> None:
    """Draws a figure of a run, if figures are wanted; one that fails is a warning."""
    if hosts.is_first() and run.config.figures:
        with plots.attempt(file := run.directory.figures / name):
            draw(file)


def board_of(run: "Run") -> contextlib.AbstractContextManager[Callable[[Row], None]]:
    """Where rows go for TensorBoard."""
    if hosts.is_first() and run.config.tensorboard:
        return tensorboard.scalars(run.directory.path / "tensorboard")
    return contextlib.nullcontext(lambda row: None)
