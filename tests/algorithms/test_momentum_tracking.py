"""Momentum tracking: what the two starts mean."""

import numpy as np
import pytest

from ccl_jax import algorithms
from tests.algorithms.quadratics import Quadratics


def first_steps(start):
    quadratics = Quadratics(agents=4, size=3, seed=0)
    gradients = np.stack([quadratics.gradient(i, quadratics.start) for i in range(4)])
    algorithm = algorithms.make("momentum-tracking", momentum=0.9, weight_decay=0.0, start=start)
    return quadratics.start, gradients, quadratics.run(algorithm, [0.1])[0]


def test_after_a_global_start_everyone_takes_the_mean_step(eps):
    x, gradients, after = first_steps("global")
    np.testing.assert_allclose(
        after, np.tile(x - 0.1 * gradients.mean(axis=0), (4, 1)), rtol=0, atol=80 * eps
    )


def test_after_a_zero_start_everyone_takes_its_own(eps):
    x, gradients, after = first_steps("zero")
    np.testing.assert_allclose(after, x - 0.1 * gradients, rtol=0, atol=80 * eps)


def test_the_mean_does_not_depend_on_the_start(eps):
    quadratics = Quadratics(agents=5, size=3, seed=3)
    quadratics.curvature[:] = quadratics.curvature[0]
    paths = [
        quadratics.run(
            algorithms.make("momentum-tracking", momentum=0.8, weight_decay=0.0, start=start),
            [0.05] * 12,
        )
        for start in ("zero", "global")
    ]
    np.testing.assert_allclose(paths[0].mean(axis=1), paths[1].mean(axis=1), rtol=0, atol=80 * eps)
    assert np.abs(paths[0] - paths[1]).max() > 0.05


def test_refuses_another_start():
    with pytest.raises(ValueError, match="start is 'local'; it must be zero or global"):
        algorithms.make("momentum-tracking", start="local")
