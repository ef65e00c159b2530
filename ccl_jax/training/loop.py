"""The training loop: epochs of steps on data that live on the device.

The loop owns time (compilation, training and evaluation are measured apart), the metrics of an
epoch, and what happens at a loss that is no longer finite. It starts wherever a `Progress` says, and
writes nothing itself: rows, states and progress go to callbacks.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import randomness
from ccl_jax.data import augment
from ccl_jax.data.datasets import Dataset
from ccl_jax.data.feeds import Feed
from ccl_jax.devices import hosts
from ccl_jax.devices.parallel import Plan
from ccl_jax.losses import Batch
from ccl_jax.training.evaluation import Evaluation
from ccl_jax.training.merge import Merge
from ccl_jax.training.objective import LAMBDAS
from ccl_jax.training.progress import Progress, Row
from ccl_jax.training.step import StepMetrics, TrainState, skip_non_finite

Step = Callable[..., tuple[TrainState, StepMetrics]]


# What a merge changes, of what tables show.
_MERGED = ("local_accuracy_mean", "local_accuracy_min", "local_accuracy_max", "consensus_distance")


class Diverged(ArithmeticError):
    """A loss is no longer finite. The message names the step, the agent and the likely cause."""


class Timing(NamedTuple):
    """Where the time of a run went.

    Attributes:
      seconds_compile: Spent compiling the step.
      seconds_training: Spent in steps, without compilation and evaluation.
      seconds_evaluation: Spent evaluating.
      steps: Steps done.
    """

    seconds_compile: float
    seconds_training: float
    seconds_evaluation: float
    steps: int


def make_data_step(
    step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]],
    feed: Feed,
    dataset: Dataset,
    augmentation: augment.Augmentation,
) -> Step:
    """Puts fetching, augmenting and normalising in front of a step.

    Returns:
      `data_step(state, constants, item) -> (state, metrics)` with the constants and an item of the
      feed. Augmentation of agent i is keyed by the step and by i.
    """

    def data_step(state, constants, item):
        images, labels, mask = feed.fetch(constants, item)
        step_key = randomness.step_key(state.key, randomness.Stream.AUGMENTATION, state.step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, jnp.arange(feed.agents))
        # Raw pixels are augmented, so that what a crop pads is black.
        images = jax.vmap(augmentation)(keys, images.astype(jnp.float32))
        images = augment.normalize(images, dataset.mean, dataset.std, dataset.scale)
        return step(state, Batch(images, labels, mask))

    return data_step


def fit(
    state: TrainState,
    data_step: Step,
    feed: Feed,
    *,
    epochs: int,
    evaluate: Callable[[TrainState], Evaluation],
    eval_every: int = 1,
    eval_first: bool = False,
    plan: Plan | None = None,
    start: Progress = Progress(),  # noqa: B008 (immutable)
    skip_divergence: bool = False,
    chunk_steps: int = 1,
    loss_weights: Mapping[str, float] = MappingProxyType({}),
    merge: Merge | None = None,
    compiling: Callable[[str], AbstractContextManager] = contextlib.nullcontext,
    on_epoch: Callable[[Row], None] = lambda row: None,
    on_step: Callable[[int], None] = lambda step: None,
    on_progress: Callable[[TrainState, Progress], None] = lambda state, progress: None,
) -> tuple[TrainState, Timing]:
    """Trains.

    Args:
      state: The start; its buffers are given away.
      data_step: Made by `make_data_step`; compiled here, once.
      feed: Where batches come from.
      epochs: Passes over the data.
      evaluate: Evaluates a state; called after every `eval_every`-th epoch and the last.
      eval_every: Epochs between evaluations.
      eval_first: Whether the first epoch is evaluated, too.
      plan: Where the agents are; default: all on one device.
      start: Where `state` is; that of a checkpoint goes on from there.
      skip_divergence: Do not take a step in which a number is not finite, instead of raising.
      chunk_steps: Steps that are scanned in one program. Metrics come to the host, `on_progress` is
        called and a divergence is noticed once a chunk. Saves the time between steps where they are
        short; on a CPU, XLA's convolutions are many times slower inside of a scan: use 1 there.
      loss_weights: Weights of the feature losses, by name.
        Only for the message of `Diverged`.
      merge: Made by `make_merge`, for the end of the last epoch. Its row then says what the merged
        models are worth, and with `_before_merge` what they were before.
      compiling: Makes a context in which programs are compiled, given what they are.
      on_epoch: Is given each epoch's row of metrics.
      on_step: Is told the number of steps done.
      on_progress: Is given state and progress between chunks and after epochs, each of which is a
        point from which a run can go on. It may raise to end the run. The state's buffers are only
        valid during the call.

    Returns:
      The last state, and where the time went.

    Raises:
      Diverged: A loss is not finite. The row of the unfinished epoch has been given to `on_epoch`.
        With `skip_divergence`, if that was so in every step of an epoch.
    """
    began = time.perf_counter()
    if skip_divergence:
        data_step = skip_non_finite(data_step)
    data_step = jax.jit(data_step, donate_argnums=0)
    plan = plan or Plan()
    size = min(chunk_steps, feed.steps)
    lengths = {size, feed.steps % size, (feed.steps - start.position) % size} - {0}
    with compiling(_programs(lengths)):
        state, constants = plan.put(state), plan.replicate(feed.constants)
        programs = {n: _compile(data_step, n, state, constants, feed.item, plan) for n in lengths}
    seconds_compile = time.perf_counter() - began

    done, before = start, None
    feed.unreadable.update(start.unreadable)
    while done.epoch <= epochs:
        began = time.perf_counter()
        steps = feed.epoch(done.epoch, done.position)
        while items := list(itertools.islice(steps, size)):
            state, metrics = programs[len(items)](state, constants, items)
            seconds = (time.perf_counter() - began) / len(items)
            for row in metrics:
                problem = _explain_divergence(row, before, done, loss_weights)
                before = row
                done = done.after_step(row, seconds)
                if problem and (not skip_divergence or done.totals.skipped == feed.steps):
                    on_epoch(done.row() | {"diverged": problem})
                    raise Diverged(problem)
                on_step(done.step)
            if done.position < feed.steps:
                on_progress(state, done._replace(unreadable=tuple(sorted(feed.unreadable))))
            began = time.perf_counter()

        feed.unreadable.update(hosts.union(feed.unreadable))
        done = done._replace(unreadable=tuple(sorted(feed.unreadable)))
        row, seconds_evaluation = done.row(), 0.0
        due = done.epoch % eval_every == 0 or done.epoch == epochs
        if due or (eval_first and done.epoch == 1):
            began = time.perf_counter()
            row |= evaluate(state).summary()
            if merge and done.epoch == epochs:
                before_merge = {f"{name}_before_merge": row[name] for name in _MERGED}
                state, traffic = merge(state)
                done = done.after_sending(traffic)
                row = done.row() | evaluate(state).summary() | before_merge
            seconds_evaluation = time.perf_counter() - began
        on_epoch(row)
        done = done.next_epoch(row, seconds_evaluation)
        on_progress(state, done)
    return state, Timing(seconds_compile, done.seconds_training, done.seconds_evaluation, done.step)


def _compile(
    step: Step, length: int, state: TrainState, constants: Any, item: Any, plan: Plan
) -> Callable[..., tuple[TrainState, list[StepMetrics]]]:
    """A program of so many steps, whose metrics are fetched together.

    Args:
      step: A data step.
      length: Number of steps.
      state: Where it starts, or its shapes.
      constants: Of the feed.
      item: Shapes of one item of the feed.
      plan: Where the agents are.

    Returns:
      `program(state, constants, items) -> (state, metrics)` with `length` items; metrics of each
      step, on the host.
    """
    if length == 1:
        single = step.lower(state, constants, plan.items(item)).compile()

        def run_single(state, constants, items):
            state, metrics = single(state, constants, plan.put_items(items[0]))
            return state, [plan.fetch(metrics)]

        return run_single

    def scan(state, constants, items):
        return jax.lax.scan(lambda state, item: step(state, constants, item), state, items)

    stack = lambda x: jax.ShapeDtypeStruct((length, *x.shape), x.dtype)
    scanned = jax.jit(scan, donate_argnums=0)
    stacked_item = plan.items(jax.tree.map(stack, item), axis=1)
    scanned = scanned.lower(state, constants, stacked_item).compile()

    def run(state, constants, items):
        stacked = jax.tree.map(lambda *x: np.stack(x), *items)
        state, metrics = scanned(state, constants, plan.put_items(stacked, axis=1))
        metrics = plan.fetch(metrics)
        return state, [jax.tree.map(lambda x, k=k: x[k], metrics) for k in range(length)]

    return run


def _programs(lengths: Collection[int]) -> str:
    """What programs of so many steps are called."""
    if lengths == {1}:
        return "the training step"
    return f"the training step, {' and '.join(map(str, sorted(lengths)))} at a time"


def _explain_divergence(
    metrics: StepMetrics,
    before: StepMetrics | None,
    done: Progress,
    loss_weights: Mapping[str, float],
) -> str | None:
    """One line on why a step's losses or gradients are not finite; None if they are.

    Args:
      metrics: Of the step, on the host.
      before: Of the step before, if there was one.
      done: The progress before it.
      loss_weights: As for `fit`.
    """
    bad = ~(np.isfinite(metrics.cross_entropy) & np.isfinite(metrics.gradient_norm))
    if not bad.any() and metrics.taken.all():
        return None
    agent = int(np.argmax(bad))
    terms = {
        "cross-entropy": metrics.cross_entropy,
        **{f"{_spoken(name)} loss": values for name, values in metrics.losses.items()},
        "gradient norm": metrics.gradient_norm,
    }
    sizes = ", ".join(f"{name} {float(value[agent]):.4g}" for name, value in terms.items())
    outweighs = next(
        (text for m in (metrics, before) if m and (text := _outweighs(m, loss_weights))), None
    )
    cause = outweighs or (
        f"the {_spoken(runaway)} loss ran away from the cross-entropy: lower {_weight(runaway)}, take "
        "another distance (huber, cosine) or use a network with normalisation"
        if (runaway := done.totals.runaway) in loss_weights
        else "the learning rate is too high for this model and data: lower lr or clip gradients"
    )
    what = "the loss" if bad.any() else "a parameter"
    return f"{what} is no longer finite at step {done.step + 1}, agent {agent} ({sizes}); likely {cause}"


def _outweighs(metrics: StepMetrics, weights: Mapping[str, float]) -> str | None:
    """Which weighted loss is more than ten times the cross-entropy of some agent; None if none is."""
    for name, weight in weights.items():
        # Divided, since 1e38 of anything overflows.
        if (metrics.losses[name] / 10 * np.float64(weight) > metrics.cross_entropy).any():
            return (
                f"{_weight(name)} {weight:g} is too large: so weighted, the {_spoken(name)} loss is "
                f"more than ten times the cross-entropy: lower {_weight(name)}"
            )
    return None


def _spoken(name: str) -> str:
    return name.replace("_", "-")


def _weight(name: str) -> str:
    """What sets the weight of a feature loss."""
    return LAMBDAS.get(name, f"the weight of {name}")
