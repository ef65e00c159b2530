"""The training loop of several runs that differ in their seed, as one program.

Seeds are one more axis in front: states `[seeds, agents, ...]`, metrics `[seeds, agents]`, batches
`[seeds, agents, batch, ...]`, and a step of one run is vmapped over it, outside of what spreads agents
over devices. Each run has a ledger, rows and evaluations of its own, as if it ran alone. One whose loss
is no longer finite ends; its place in the arrays goes on with numbers that nobody looks at.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax.data.feeds import Feed
from ccl_jax.devices.parallel import Plan
from ccl_jax.training import loop
from ccl_jax.training.evaluation import Evaluation
from ccl_jax.training.ledger import Diverged, Ledger
from ccl_jax.training.merge import Merge
from ccl_jax.training.progress import Progress, Row
from ccl_jax.training.step import StepMetrics, TrainState, skip_non_finite

PyTree = Any
Take = Callable[[int], TrainState]


class Feeds:
    """The feeds of several runs side by side.

    Args:
      feeds: One of each run, of equally many steps. Their constants are let go of.

    Attributes:
      steps: Steps of one epoch.
      item: Shapes of one item, with the runs in front.
      constants: Arrays on the device. What all runs share, such as a dataset, is there once; the rest
        leads with the runs.
      axes: Their axis of runs, in the form of `constants`: 0, or None where there is none.
    """

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds
        self.steps = feeds[0].steps
        stack = lambda x: jax.ShapeDtypeStruct((len(feeds), *x.shape), x.dtype)
        self.item = jax.tree.map(stack, feeds[0].item)
        leaves, form = zip(*[jax.tree.flatten(feed.constants) for feed in feeds], strict=True)
        shared, axes = zip(*[_share(same) for same in zip(*leaves, strict=True)], strict=True)
        self.constants = jax.tree.unflatten(form[0], shared)
        self.axes = jax.tree.unflatten(form[0], axes)
        for feed in feeds:
            feed.constants = ()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[PyTree]:
        """The items of an epoch from its step `start` on, with the runs in front."""
        for items in zip(*[feed.epoch(epoch, start) for feed in self._feeds], strict=True):
            yield jax.tree.map(lambda *x: np.stack(x), *items)


def _share(arrays: Sequence[jax.Array]) -> tuple[jax.Array, int | None]:
    """One of some arrays that are equal, and no axis of runs; else all of them, and their axis."""
    first, *others = arrays
    if all(bool((x == first).all()) for x in others):
        return first, None
    return jnp.stack(arrays), 0


def fit(
    states: Sequence[TrainState],
    data_step: loop.Step,
    feeds: Sequence[Feed],
    *,
    starts: Sequence[Progress],
    epochs: int,
    evaluate: Callable[[TrainState], Evaluation],
    eval_every: int = 1,
    eval_first: bool = False,
    plan: Plan | None = None,
    skip_divergence: bool = False,
    chunk_steps: int = 1,
    loss_weights: Mapping[str, float] = MappingProxyType({}),
    merge: Merge | None = None,
    compiling: Callable[[str], AbstractContextManager] = contextlib.nullcontext,
    on_epoch: Callable[[int, Row], None] = lambda run, row: None,
    on_step: Callable[[], None] = lambda: None,
    due: Callable[[], loop.Answer] = lambda: lambda: False,
    on_progress: Callable[[Take, dict[int, Progress]], None] = lambda take, progress: None,
) -> list[tuple[TrainState, loop.Timing] | Diverged]:
    """Trains several runs of one program; what is not said here is as for `loop.fit`.

    Args:
      states: The start of each run; stacked, so their buffers are not needed any more.
      data_step: Of one run; the same function must be right for all of them.
      feeds: Of each run.
      starts: Where each run is; all at the same step.
      epochs: Passes over the data.
      evaluate: Evaluates the state of one run.
      eval_every: Epochs between evaluations.
      eval_first: Whether the first epoch is evaluated, too.
      plan: Where the agents are.
      skip_divergence: Do not take a step in which a number is not finite; of one run, not of all.
      chunk_steps: Steps that are scanned in one program.
      loss_weights: Weights of the feature losses, by name.
      merge: Of one run, for the end of the last epoch.
      compiling: Makes a context in which programs are compiled, given what they are.
      on_epoch: Is given the number of a run and its row; with `diverged` in it, the run's last one.
      on_step: Is told that a step of all runs is done.
      due: Whether `on_progress` is to be called between two chunks.
      on_progress: Is given `take`, which makes the state of a run by its number, and the progress of
        the runs that have not diverged, by their numbers.

    Returns:
      For each run its last state and where the time went, or why it ended. Times of what is done for
      all at once are divided equally among those that train.
    """
    clock, number = loop.Clock(), len(states)
    if skip_divergence:
        data_step = skip_non_finite(data_step)
    plan = plan or Plan()
    feed = Feeds(feeds)
    size = min(chunk_steps, feed.steps)
    lengths = {size, feed.steps % size, (feed.steps - starts[0].position) % size} - {0}
    with compiling(loop.describe_programs(lengths)):
        state = plan.put(jax.tree.map(lambda *x: jnp.stack(x), *states), axis=1)
        constants = plan.replicate(feed.constants)
        step = jax.vmap(data_step, in_axes=(0, feed.axes, 0))
        begin_chunk = loop.compile_chunks(step, lengths, state, constants, feed.item, plan)
    seconds_compile = clock.lap() / number

    ended: dict[int, Diverged] = {}
    merged: dict[int, TrainState] = {}
    ledgers = [
        Ledger(
            start,
            feed.steps,
            skip_divergence=skip_divergence,
            loss_weights=loss_weights,
            on_epoch=lambda row, run=run: on_epoch(run, row),
            on_step=lambda step: None,
        )
        for run, start in enumerate(starts)
    ]
    pick = jax.jit(lambda stacked, run: jax.tree.map(lambda x: x[run], stacked))

    def alive() -> list[int]:
        return [run for run in range(number) if run not in ended]

    def enter(steps: list[StepMetrics], seconds: float) -> None:
        training = alive()
        for run in training:
            own = [jax.tree.map(lambda x, run=run: x[run], metrics) for metrics in steps]
            try:
                ledgers[run].enter(own, seconds / len(training))
            except Diverged as error:
                ended[run] = error
        if not alive():
            raise ended[training[-1]]  # There is nobody left to go on for.
        for _ in steps:
            on_step()

    def take(state: TrainState, run: int) -> TrainState:
        return merged[run] if run in merged else plan.put(pick(state, run))

    def hand_out(state: TrainState) -> None:
        progress = {run: ledgers[run].done for run in alive()}
        on_progress(lambda run: take(state, run), progress)

    position = starts[0].position
    with contextlib.suppress(Diverged):
        for epoch in range(starts[0].epoch, epochs + 1):
            clock.lap()
            chunks = loop.in_chunks(feed.epoch(epoch, position), size)
            state = loop.run_epoch(state, chunks, begin_chunk, enter, clock, due, hand_out)
            position = 0
            for run in alive():
                done, seconds_evaluation = ledgers[run].done, 0.0
                row = done.row()
                if loop.is_evaluated(epoch, epochs, eval_every, eval_first):
                    clock.lap()
                    end = merge if epoch == epochs else None
                    own = take(state, run)
                    own, done, row = loop.evaluate_and_merge(own, done, evaluate, end)
                    if end:
                        merged[run] = own
                    seconds_evaluation = clock.lap()
                if epoch == epochs:
                    try:
                        ledgers[run].close(row)
                    except Diverged as error:
                        ended[run] = error
                        continue
                on_epoch(run, row)
                ledgers[run].done = done.next_epoch(row, seconds_evaluation)
            if alive():
                hand_out(state)

    def result(run: int) -> tuple[TrainState, loop.Timing]:
        done = ledgers[run].done
        times = (seconds_compile, done.seconds_training, done.seconds_evaluation)
        return take(state, run), loop.Timing(*times, done.step)

    return [ended[run] if run in ended else result(run) for run in range(number)]
