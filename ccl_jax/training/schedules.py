"""Learning-rate schedules by name, made of optax's."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

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
