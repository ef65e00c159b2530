"""Learning-rate schedules: literal rates, warm-up, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.training import schedules


def rates(*args, steps):
    schedule = schedules.make(*args)
    return np.array([schedule(step) for step in range(steps)])


def test_the_published_schedule_divides_by_ten_at_half_and_three_quarters():
    expected = [0.1] * 50 + [0.01] * 25 + [0.001] * 25
    np.testing.assert_allclose(rates("step", 0.1, 100, steps=100), expected, rtol=1e-6)


@pytest.mark.parametrize("steps", range(1, 9))
def test_short_runs_start_at_the_full_rate_and_never_rise(steps):
    values = rates("step", 0.1, steps, steps=steps)
    assert values[0] == np.float32(0.1)
    assert (np.diff(values) <= 0).all()


def test_cosine_goes_from_the_rate_to_zero():
    values = rates("cosine", 0.2, 8, steps=9)
    expected = 0.1 * (1 + np.cos(np.pi * np.arange(9) / 8))
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)


def test_warm_up_rises_in_equal_steps_from_zero():
    values = rates("constant", 0.4, 10, 4, steps=10)
    np.testing.assert_allclose(values, [0, 0.1, 0.2, 0.3, *[0.4] * 6], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_schedules_are_float32_and_can_be_traced(name):
    schedule = schedules.make(name, 0.1, 20, 3)
    traced = jax.jit(schedule)(jnp.int32(7))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, schedule(7), rtol=1e-6)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("stpe", 0.1, 10), "did you mean 'step'"),
        (("step", 0.0, 10), "learning rate is 0.0; it must be"),
        (("step", -0.1, 10), "must be a number > 0"),
        (("step", float("nan"), 10), "must be a number > 0"),
        (("step", float("inf"), 10), "must be a number > 0"),
        (("step", 0.1, 10, 11), "warm-up is 11 steps; it must be 0 to 10"),
        (("step", 0.1, 10, -1), "warm-up is -1 steps"),
    ],
)
def test_refuses(arguments, said):
    with pytest.raises(ValueError, match=said):
        schedules.make(*arguments)
