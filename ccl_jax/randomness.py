"""Random streams: one seed, a separate stream for every purpose.

On the host, streams come from NumPy's `SeedSequence` spawn keys; inside the jitted step, from
`jax.random` keys folded with the purpose first. So two purposes never share random numbers, and adding
a use to one does not shift another.
"""

import enum

import jax
import numpy as np


class Stream(enum.IntEnum):
    """The purposes. The numbers are part of every recorded result: never renumber, only add."""

    PARTITION = 1
    BATCHES = 2
    AUGMENTATION = 3
    FAULTS = 4
    HETEROGENEITY = 5
    HOLD_OUT = 6
    TAKE = 7
    EXCHANGES = 8
    NOISE = 9


def generator(stream: Stream, seed: int, *path: int) -> np.random.Generator:
    """A generator that depends on the purpose, the seed and a path such as (epoch, agent) only.

    Args:
      stream: What the numbers are for.
      seed: The seed of the run, 0 to 2**32 - 1.
      *path: Non-negative integers that tell independent draws of one purpose apart.

    Raises:
      ValueError: The seed is out of range.
    """
    check_seed(seed)
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(int(stream), *path))
    return np.random.default_rng(sequence)


def seed_of(seed: int, part: int) -> int:
    """A seed for each of several independent draws of one purpose; of part 0 it is the run's own.

    Args:
      seed: The seed of the run, 0 to 2**32 - 1.
      part: Number of the draw, from 0 on.
    """
    if part == 0:
        return seed
    return int(np.random.SeedSequence(entropy=seed, spawn_key=(0, part)).generate_state(1)[0])


def check_seed(seed: int) -> None:
    """Raises ValueError unless 0 <= seed < 2**32, the range that all generators here accept."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be 0 to 2**32 - 1, got {seed}: choose another seed.")


def step_key(key: jax.Array, stream: Stream, step: jax.Array) -> jax.Array:
    """The key of one purpose in one step.

    Args:
      key: The run's key.
      stream: What the numbers are for.
      step: Scalar int32.
    """
    return jax.random.fold_in(jax.random.fold_in(key, int(stream)), step)
