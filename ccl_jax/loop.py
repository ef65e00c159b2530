"""The training loop: epochs of steps on data that live on the device.

The loop owns time (compilation, training and evaluation are measured apart), the metrics of an
epoch, and the stop at a loss that is no longer finite. It writes nothing itself: rows go to a
callback, as does progress.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import streams, training
from ccl_jax.cross_features import Batch
from ccl_jax.data import augment
from ccl_jax.data.datasets import Dataset
from ccl_jax.data.feeds import Feed
from ccl_jax.evaluation import Evaluation
from ccl_jax.training import StepMetrics, TrainState

Row = dict[str, Any]


class Diverged(ArithmeticError):
    """A loss is no longer finite. The message names the step, the agent and the likely cause."""


class Timing(NamedTuple):
    """Attributes:
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
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Puts fetching, augmenting and normalising in front of a step.

    Returns:
      `data_step(state, constants, item) -> (state, metrics)` with the constants and an item of the
      feed. Augmentation of agent i is keyed by the step and by i.
    """

    def data_step(state, constants, item):
        images, labels, mask = feed.fetch(constants, item)
        step_key = streams.step_key(state.key, streams.Stream.AUGMENTATION, state.step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, jnp.arange(feed.agents))
        # Raw pixels are augmented, so that what a crop pads is black.
        images = jax.vmap(augmentation)(keys, images.astype(jnp.float32))
        images = augment.normalize(images, dataset.mean, dataset.std, dataset.scale)
        return step(state, Batch(images, labels, mask))

    return data_step


def fit(
    state: TrainState,
    data_step: Callable[..., tuple[TrainState, StepMetrics]],
    feed: Feed,
    *,
    epochs: int,
    evaluate: Callable[[TrainState], Evaluation],
    eval_every: int = 1,
    on_epoch: Callable[[Row], None] = lambda row: None,
    on_step: Callable[[int], None] = lambda step: None,
) -> tuple[TrainState, Timing]:
    """Trains.

    Args:
      state: The start; its buffers are given away.
      data_step: Made by `make_data_step`; compiled here, once.
      feed: Where batches come from.
      epochs: Passes over the data.
      evaluate: Evaluates a state; called after every `eval_every`-th epoch and the last.
      eval_every: Epochs between evaluations.
      on_epoch: Is given each epoch's row of metrics.
      on_step: Is told the number of steps done.

    Returns:
      The last state, and where the time went.

    Raises:
      Diverged: A loss is not finite. The row of the unfinished epoch has been given to `on_epoch`.
    """
    began = time.perf_counter()
    state = training.with_network_memory(data_step, state, feed.constants, feed.item)
    compiled = (
        jax.jit(data_step, donate_argnums=0).lower(state, feed.constants, feed.item).compile()
    )
    seconds_compile = time.perf_counter() - began

    seconds_training = seconds_evaluation = 0.0
    steps = 0
    bytes_sent = np.zeros(feed.agents, np.int64)
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        history: list[StepMetrics] = []
        diverged = None
        for item in feed.epoch(epoch):
            state, metrics = compiled(state, feed.constants, item)
            history.append(jax.device_get(metrics))
            steps += 1
            bytes_sent += history[-1].traffic.bytes_sent()
            diverged = _explain_divergence(history, steps)
            if diverged:
                break
            on_step(steps)
        seconds_training += time.perf_counter() - began

        row = {"epoch": epoch, "step": steps, **epoch_means(history)}
        row |= {
            "bytes_sent_per_agent": _whole(bytes_sent.mean()),
            "bytes_sent_per_agent_max": int(bytes_sent.max()),
            "seconds_training": seconds_training,
        }
        if diverged:
            on_epoch(row | {"diverged": diverged})
            raise Diverged(diverged)
        if epoch % eval_every == 0 or epoch == epochs:
            began = time.perf_counter()
            row |= evaluate(state).summary()
            seconds_evaluation += time.perf_counter() - began
        on_epoch(row)
    return state, Timing(seconds_compile, seconds_training, seconds_evaluation, steps)


def epoch_means(history: list[StepMetrics]) -> Row:
    """Means over an epoch: cross-entropy and accuracy a sample, L_mv and L_dv a step and agent."""
    read = lambda name: np.stack([getattr(m, name) for m in history]).astype(np.float64)
    samples, correct = read("samples"), read("correct")
    total = max(1.0, samples.sum())
    # A step in which an agent had no samples left says nothing about its features.
    busy = samples > 0
    mean = lambda values: float(values[busy].mean()) if busy.any() else float("nan")
    return {
        "lr": float(history[-1].lr),
        "cross_entropy": float((read("cross_entropy") * samples).sum() / total),
        "train_accuracy": float(correct.sum() / total),
        "model_variant_loss": mean(read("model_variant")),
        "data_variant_loss": mean(read("data_variant")),
    }


def _explain_divergence(history: list[StepMetrics], step: int) -> str | None:
    """One line on why the last step's losses or gradients are not finite; None if they are."""
    last = history[-1]
    bad = ~(np.isfinite(last.cross_entropy) & np.isfinite(last.gradient_norm))
    if not bad.any():
        return None
    agent = int(np.argmax(bad))
    terms = {
        "cross-entropy": last.cross_entropy,
        "model-variant loss": last.model_variant,
        "data-variant loss": last.data_variant,
        "gradient norm": last.gradient_norm,
    }
    sizes = ", ".join(f"{name} {float(value[agent]):.4g}" for name, value in terms.items())
    before = history[-2] if len(history) > 1 else last
    # Comparisons with NaN, which stands for "not computed", are False.
    grew = bool((before.model_variant > 10 * before.cross_entropy).any())
    cause = (
        "the model-variant loss ran away from the cross-entropy: lower lambda_m, clip gradients "
        "or use a network with normalisation"
        if grew
        else "the learning rate is too high for this model and data: lower lr or clip gradients"
    )
    return f"the loss is no longer finite at step {step}, agent {agent} ({sizes}); likely {cause}"


def _whole(value: float) -> int | float:
    """An int where the number is whole, as bytes mostly are."""
    return int(value) if float(value).is_integer() else float(value)
