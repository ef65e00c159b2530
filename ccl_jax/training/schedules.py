"""Schedules by name: of the learning rate, made of optax's, and of the gossip rate."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ccl_jax import ranges
from ccl_jax.names import look_up


def step_decay(lr: float, steps: int) -> optax.Schedule:
    """The published one: divided by 10 after 50 % and again after 75 % of the run."""
    drops = {max(1, steps // 2): 0.1} | {max(2, steps * 3 // 4): 0.1}
    return optax.piecewise_constant_schedule(lr, drops)


def cosine(lr: float, steps: int) -> optax.Schedule:
    """Half a cosine, from lr to 0."""
    return optax.cosine_decay_schedule(lr, max(1, steps))


def constant(lr: float, steps: int) -> optax.Schedule:
    """Always lr."""
    return optax.constant_schedule(lr)


SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "step": step_decay,
    "cosine": cosine,
    "constant": constant,
}


def make(name: str, lr: float, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """A schedule by name.

    Args:
      name: Key of `SCHEDULES`.
      lr: Highest learning rate, > 0.
      steps: Steps of the whole run.
      warmup_steps: Steps of linear warm-up from 0 at its start.

    Raises:
      ValueError: Unknown name, lr <= 0, or a warm-up longer than the run.
    """
    build = look_up("schedule", name, SCHEDULES)
    if not 0 < lr < float("inf"):
        raise ValueError(f"the learning rate is {lr}; it must be a number > 0")
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warm-up is {warmup_steps} steps; it must be 0 to {steps}, the whole run")
    schedule = build(lr, steps)
    warmup = optax.linear_schedule(0.0, 1.0, warmup_steps) if warmup_steps else lambda step: 1.0

    def by_step(step):
        step = jnp.asarray(step, jnp.float32)  # optax mixes steps and rates in one expression
        return jnp.asarray(schedule(step) * warmup(step), jnp.float32)

    return by_step


@dataclasses.dataclass(frozen=True)
class AveragingRate:
    """The averaging-rate scheduler ARS: a gossip rate that grows from epoch to epoch, up to 1.

    Aketi et al., arXiv:2403.03292: gamma <- min(1, gamma * growth) at the first step of every epoch, the
    first one included, before the models are mixed.

    Attributes:
      start: gamma before the first epoch, in (0, 1].
      growth: The factor of an epoch, > 0; published: 1.01 with a start of 0.09 over 300 epochs.
      epoch_steps: Steps of an epoch.

    Raises:
      ValueError: A value out of its range.
    """

    start: float
    growth: float
    epoch_steps: int

    def __post_init__(self) -> None:
        ranges.check("the start of ars", self.start, ranges.UP_TO_1)
        ranges.check("the growth of ars", self.growth, ranges.POSITIVE)
        ranges.check("epoch_steps", self.epoch_steps, ranges.at_least(1))

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """gamma in a step, counted from 0."""
        epochs = jnp.asarray(step // self.epoch_steps + 1, float)
        return jnp.minimum(1.0, self.start * self.growth**epochs)

    def __str__(self) -> str:
        return f"ars:{self.start:g}:{self.growth:g}"


def gossip_rate(text: str, epoch_steps: int) -> float | AveragingRate:
    """A gossip rate as it is given on a command line: a number, or ars:START:GROWTH.

    Args:
      text: As 0.9 or ars:0.09:1.01.
      epoch_steps: Steps of an epoch, for what grows with epochs.

    Raises:
      ValueError: It is neither, or a number of a schedule is out of range.
    """
    try:
        if not text.startswith("ars:"):
            return float(text)
        start, growth = map(float, text.split(":")[1:])
    except ValueError:
        raise ValueError(
            f"gossip_rate is {text}; it must be {ranges.SHARED['gossip_rate'].allowed}, as ars:0.09:1.01"
        ) from None
    return AveragingRate(start, growth, epoch_steps)
