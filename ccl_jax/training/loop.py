"""The training loop: epochs of steps on data that live on the device.

The loop owns time (compilation, training and evaluation are measured apart), the metrics of an
epoch, and what happens at a loss that is no longer finite. It starts wherever a `Progress` says, and
writes nothing itself: rows, states and progress go to callbacks.

One chunk of steps is under way while the metrics of the one before are read, so that neither the device
nor the host waits for the other. Where a state is handed out (to be saved or evaluated) all is read
first: state and progress are always of the same step.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
from ccl_jax.training.ledger import Diverged as Diverged
from ccl_jax.training.ledger import Ledger
from ccl_jax.training.merge import Merge
from ccl_jax.training.progress import Progress, Row
from ccl_jax.training.step import StepMetrics, TrainState, skip_non_finite

Step = Callable[..., tuple[TrainState, StepMetrics]]
Answer = Callable[[], bool]
BeginChunk = Callable[[TrainState, list[Any]], tuple[TrainState, Callable[[], list[StepMetrics]]]]

# What a merge changes, of what tables show.
_MERGED = ("local_accuracy_mean", "local_accuracy_min", "local_accuracy_max", "consensus_distance")


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
    due: Callable[[], Answer] = lambda: lambda: True,
    on_progress: Callable[[TrainState, Progress], None] | None = None,
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
      chunk_steps: Steps that are scanned in one program. Metrics come to the host once a chunk, while
        the next one runs: by then a divergence is noticed. Saves the time between steps where they
        are short; on a CPU, XLA's convolutions are many times slower inside of a scan: use 1 there.
      loss_weights: Weights of the feature losses, by name.
        Only for the message of `Diverged`.
      merge: Made by `make_merge`, for the end of the last epoch. Its row then says what the merged
        models are worth, and with `_before_merge` what they were before.
      compiling: Makes a context in which programs are compiled, given what they are.
      on_epoch: Is given each epoch's row of metrics.
      on_step: Is told the number of steps done.
      due: Whether `on_progress` is to be called between two chunks, which then do not overlap. Called
        before a chunk; what it returns is called before the next one, and answers. So several
        processes have the time of a chunk to agree. Default: at every one.
      on_progress: Is given state and progress between chunks, where it is due, and after epochs. Each
        is a point from which a run can go on. It may raise to end the run. The state's buffers are
        only valid during the call.

    Returns:
      The last state, and where the time went.

    Raises:
      Diverged: A loss is not finite. The row of the unfinished epoch has been given to `on_epoch`.
        With `skip_divergence`, if that was so in every step of an epoch, or after the last one.
    """
    clock = Clock()
    if skip_divergence:
        data_step = skip_non_finite(data_step)
    plan = plan or Plan()
    size = min(chunk_steps, feed.steps)
    lengths = {size, feed.steps % size, (feed.steps - start.position) % size} - {0}
    with compiling(describe_programs(lengths)):
        state, constants = plan.put(state), plan.replicate(feed.constants)
        begin_chunk = compile_chunks(data_step, lengths, state, constants, feed.item, plan)
    seconds_compile = clock.lap()

    ledger = Ledger(
        start,
        feed.steps,
        skip_divergence=skip_divergence,
        loss_weights=loss_weights,
        on_epoch=on_epoch,
        on_step=on_step,
    )
    if on_progress is None:
        due, on_progress = (lambda: lambda: False), (lambda state, progress: None)
    hand_out = lambda state: on_progress(state, ledger.done.knowing(feed.unreadable))
    feed.unreadable.update(start.unreadable)
    while (epoch := ledger.done.epoch) <= epochs:
        clock.lap()
        chunks = in_chunks(feed.epoch(epoch, ledger.done.position), size)
        state = run_epoch(state, chunks, begin_chunk, ledger.enter, clock, due, hand_out)
        feed.unreadable.update(hosts.union(feed.unreadable))
        done = ledger.done.knowing(feed.unreadable)
        row, seconds_evaluation = done.row(), 0.0
        if is_evaluated(epoch, epochs, eval_every, eval_first):
            clock.lap()
            end = merge if epoch == epochs else None
            state, done, row = evaluate_and_merge(state, done, evaluate, end)
            seconds_evaluation = clock.lap()
        if epoch == epochs:
            ledger.close(row)
        on_epoch(row)
        ledger.done = done.next_epoch(row, seconds_evaluation)
        on_progress(state, ledger.done)
    done = ledger.done
    return state, Timing(seconds_compile, done.seconds_training, done.seconds_evaluation, done.step)


def run_epoch(
    state: TrainState,
    chunks: Iterable[list[Any]],
    begin_chunk: BeginChunk,
    enter: Callable[[list[StepMetrics], float], None],
    clock: "Clock",
    due: Callable[[], Answer],
    hand_out: Callable[[TrainState], None],
) -> TrainState:
    """The steps of an epoch, or what is left of it. One chunk is under way while the last is read.

    Args:
      state: Where it starts; its buffers are given away.
      chunks: Items of the feed, some at a time.
      begin_chunk: Made by `compile_chunks`.
      enter: Is given the metrics of a chunk, and the seconds since those of the last.
      clock: Has just been asked.
      due: As for `fit`.
      hand_out: Is given the state where that is due.

    Returns:
      The state at the end, where all metrics have been entered.
    """
    read = pause = None  # Of the chunk under way: its metrics, and whether to stop after it.
    for items in chunks:
        if read and pause():
            enter(read(), clock.lap())
            hand_out(state)
            clock.lap()
            read = None
        pause = due()
        state, read_next = begin_chunk(state, items)
        if read:
            enter(read(), clock.lap())
        read = read_next
    enter(read(), clock.lap())
    return state


def in_chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """So many items at a time; fewer in the end."""
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def is_evaluated(epoch: int, epochs: int, eval_every: int, eval_first: bool) -> bool:
    """Whether an epoch ends with an evaluation; see `fit`."""
    return epoch == epochs or epoch % eval_every == 0 or (eval_first and epoch == 1)


def evaluate_and_merge(
    state: TrainState,
    done: Progress,
    evaluate: Callable[[TrainState], Evaluation],
    merge: Merge | None,
) -> tuple[TrainState, Progress, Row]:
    """The end of an epoch that is evaluated: with its row, and after the merge if there is one."""
    row = done.row() | evaluate(state).summary()
    if merge is None:
        return state, done, row
    before_merge = {f"{name}_before_merge": row[name] for name in _MERGED}
    state, traffic = merge(state)
    done = done.after_sending(traffic)
    return state, done, done.row() | evaluate(state).summary() | before_merge


class Clock:
    """Tells how much time has passed since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def compile_chunks(
    data_step: Step,
    lengths: Collection[int],
    state: TrainState,
    constants: Any,
    item: Any,
    plan: Plan,
) -> BeginChunk:
    """Compiles programs of several steps, whose metrics are fetched together.

    Args:
      data_step: Made by `make_data_step`.
      lengths: Of the chunks that there will be.
      state: Where the first one starts.
      constants: Of the feed, on the devices.
      item: Shapes of one item of the feed.
      plan: Where the agents are.

    Returns:
      `begin_chunk(state, items) -> (state, read)`, which takes the state's buffers and does not wait
      for the steps; `read()` does, and returns the metrics of each, on the host.
    """
    step = jax.jit(data_step, donate_argnums=0)
    programs = {n: _compile(step, n, state, constants, item, plan) for n in lengths}
    return lambda state, items: programs[len(items)](state, constants, items)


def _compile(
    step: Step, length: int, state: TrainState, constants: Any, item: Any, plan: Plan
) -> Callable[..., Any]:
    """`program(state, constants, items)` of so many steps; see `compile_chunks`."""
    if length == 1:
        single = step.lower(state, constants, plan.items(item)).compile()

        def run_single(state, constants, items):
            state, metrics = single(state, constants, plan.put_items(items[0]))
            metrics = plan.begin_fetch(metrics)
            return state, lambda: [jax.device_get(metrics)]

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
        metrics = plan.begin_fetch(metrics)
        return state, lambda: _unstack(jax.device_get(metrics), length)

    return run


def _unstack(metrics: StepMetrics, length: int) -> list[StepMetrics]:
    """Metrics of each of so many steps, whose leaves lead with them."""
    return [jax.tree.map(lambda x, k=k: x[k], metrics) for k in range(length)]


def describe_programs(lengths: Collection[int]) -> str:
    """What programs of so many steps are called."""
    if lengths == {1}:
        return "the training step"
    return f"the training step, {' and '.join(map(str, sorted(lengths)))} at a time"
