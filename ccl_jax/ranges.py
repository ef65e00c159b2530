"""Which values a setting may have: stated once, checked wherever the setting is given."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The values that a setting may have.

    Attributes:
      allowed: The range in words, to follow "it must be".
      holds: Whether a value is in it.
    """

    allowed: str
    holds: Callable[[Any], bool]


POSITIVE = Range("a number > 0", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Range("a number >= 0", lambda x: 0 <= x < math.inf)
BELOW_1 = Range("in [0, 1)", lambda x: 0 <= x < 1)
UP_TO_1 = Range("in (0, 1]", lambda x: 0 < x <= 1)
# A text is checked where it is read: `ccl_jax.training.schedules.gossip_rate`.
RATE = Range("in (0, 1], or ars:START:GROWTH", lambda x: isinstance(x, str) or UP_TO_1.holds(x))
# Steps are counted in int32.
COUNT = Range("at least 1, and below 2**31", lambda x: 1 <= x < 2**31)
SEED = Range("0 to 2**32 - 1", lambda x: 0 <= x < 2**32)


def at_least(low: int) -> Range:
    """Numbers from `low` on."""
    return Range(f"at least {low}", lambda x: x >= low)


def between(low: int, high: int) -> Range:
    """Numbers from `low` to `high`."""
    return Range(f"{low} to {high}", lambda x: low <= x <= high)


def one_of(names: Sequence[str]) -> Range:
    """One of these names."""
    return Range(" or ".join([", ".join(names[:-1]), names[-1]]), lambda x: x in names)


# Settings that are given in more than one place: flags, objectives, hyper-parameters of methods.
SHARED = {
    "momentum": BELOW_1,
    "b1": BELOW_1,
    "b2": BELOW_1,
    "gossip_rate": RATE,
    "ema_factor": UP_TO_1,
    "correction_rate": POSITIVE,
    "server_step_size": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "lambda_m": NOT_NEGATIVE,
    "lambda_d": NOT_NEGATIVE,
    "lambda_warmup_steps": at_least(0),
    "clip_norm": POSITIVE,
    "sam_rho": NOT_NEGATIVE,
    "temperature": POSITIVE,
    "local_steps": COUNT,
    "gossip_steps": COUNT,
    # Each is another three matrix products a tensor in the program.
    "newton_schulz_steps": Range(
        "a whole number, 1 to 100", lambda x: isinstance(x, int) and 1 <= x <= 100
    ),
    "message_noise": NOT_NEGATIVE,
    "compression_start": one_of(("model", "zero")),
}


def check(name: str, value: Any, allowed: Range | None = None) -> None:
    """Makes sure that a setting has a value that it may have.

    Args:
      name: The setting.
      value: Its value; None, where a setting has no value of its own, is always allowed.
      allowed: Its range; default: that of `SHARED`.

    Raises:
      ValueError: It has not; the message says what is allowed.
    """
    allowed = allowed or SHARED[name]
    if value is not None and not allowed.holds(value):
        raise ValueError(f"{name} is {value}; it must be {allowed.allowed}")
