"""Statistics over seeds, by hand."""

import math

import numpy as np
import pytest

from experiments.report import statistics


def test_mean_and_spread():
    # Squared deviations 2.25 + 0.25 + 0.25 + 2.25 = 5, over 3.
    assert statistics.spread([1, 2, 3, 4]) == (4, 2.5, pytest.approx(math.sqrt(5 / 3)))
    assert statistics.spread([1.0, math.nan])[:2] == (1, 1.0)
    assert math.isnan(statistics.spread([1.0]).std) and math.isnan(statistics.spread([]).mean)


def test_paired_difference_by_hand():
    # Differences 2, 3, 1: mean 2, std 1; t(0.975, 2) = 4.302653 / sqrt(3) = 2.484138.
    found = statistics.paired({0: 3, 1: 5, 2: 4, 7: 1}, {0: 1, 1: 2, 2: 3, 8: 9})
    assert found.n == 3
    np.testing.assert_allclose(found[1:], [2, 2 - 2.484138, 2 + 2.484138], rtol=1e-6)
    assert found.verdict == "no difference seen"
    # Differences 2, 2.2, 1.8: std 0.2, half width 0.4968.
    up = statistics.paired({0: 3, 1: 4.2, 2: 4.8}, {0: 1, 1: 2, 2: 3})
    np.testing.assert_allclose(up[1:], [2, 1.503172, 2.496828], rtol=1e-6)
    assert up.verdict == "higher"
    assert statistics.paired({0: 1, 1: 2, 2: 3}, {0: 3, 1: 4.2, 2: 4.8}).verdict == "lower"
    assert statistics.paired({0: 1}, {0: 2}).verdict == "too few seeds to say"
    assert statistics.paired({0: 1}, {1: 2}).n == 0
    # Equal runs: an interval of width 0 around 0.
    assert statistics.paired({0: 1, 1: 2}, {0: 1, 1: 2}).verdict == "no difference seen"
