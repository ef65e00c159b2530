"""What several seeds say: mean and spread, paired differences with confidence intervals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Spread(NamedTuple):
    """Mean and spread of a number over seeds.

    Attributes:
      n: Number of values.
      mean: Their mean; NaN without any.
      std: Their standard deviation, over n - 1; NaN below two.
    """

    n: int
    mean: float
    std: float


class Difference(NamedTuple):
    """The difference of two methods, paired by seed.

    Attributes:
      n: Number of pairs.
      mean: Mean of the differences; NaN without any.
      low: Lower end of the confidence interval of the mean; NaN below two pairs.
      high: Its upper end.
    """

    n: int
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """In words: what can be said, no more."""
        if self.n < 2:
            return "too few seeds to say"
        if self.low <= 0 <= self.high:
            return "no difference seen"
        return "higher" if self.mean > 0 else "lower"


def spread(values: Sequence[float]) -> Spread:
    """Number, mean and standard deviation of finite values."""
    array = np.asarray(values, float)
    array = array[np.isfinite(array)]
    mean = float(array.mean()) if len(array) else float("nan")
    std = float(array.std(ddof=1)) if len(array) > 1 else float("nan")
    return Spread(len(array), mean, std)


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Mean difference to a reference, paired by seed, with Student's t interval.

    Pairs of which a value is missing or not finite are left out.

    Args:
      values: Seed -> value.
      reference: Seed -> the reference's value.
    """
    both = [(values[seed], reference[seed]) for seed in values if seed in reference]
    pairs = np.array(both, float).reshape(-1, 2)
    n, mean, std = spread(pairs[:, 0] - pairs[:, 1])
    half = std / np.sqrt(n) * stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) if n > 1 else float("nan")
    return Difference(n, mean, float(mean - half), float(mean + half))


def first_reaching(
    at: Sequence[float], values: Sequence[float | None], target: float
) -> float | None:
    """Where a curve first reaches a target, of the points at which it was measured.

    Args:
      at: `[points]` rounds, bytes or seconds.
      values: `[points]`, None where not measured.
      target: The value to reach.

    Returns:
      One of `at`, or None if it is never reached.
    """
    found = [x for x, y in zip(at, values, strict=True) if y is not None and y >= target]
    return found[0] if found else None
