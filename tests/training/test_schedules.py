"""Schedules of learning and gossip rates: literal rates, warm-up, and what is refused."""

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


def test_the_gossip_rate_grows_at_the_first_step_of_every_epoch_up_to_one():
    rate = schedules.gossip_rate("ars:0.25:1.5", epoch_steps=2)
    grown = [0.375, 0.375, 0.5625, 0.5625, 0.84375, 0.84375, 1, 1, 1]
    np.testing.assert_allclose([rate(t) for t in range(9)], grown, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(rate)(jnp.int32(2)), 0.5625, rtol=1e-6)
    assert rate(10**6) == 1  # the power overflows
    assert schedules.gossip_rate("0.9", epoch_steps=2) == 0.9


@pytest.mark.parametrize(
    "text, said",
    [
        ("fast", "gossip_rate is fast; it must be in (0, 1], or ars:START:GROWTH, as"),
        ("ars", "gossip_rate is ars; it must be"),
        ("ars:0.1", "gossip_rate is ars:0.1; it must be"),
        ("ars:0.1:x", "gossip_rate is ars:0.1:x; it must be"),
        ("ars:0.1:1.1:2", "gossip_rate is ars:0.1:1.1:2; it must be"),
        ("ars:0:1.1", "the start of ars is 0.0; it must be in (0, 1]"),
        ("ars:1.1:1.1", "the start of ars is 1.1; it must be in (0, 1]"),
        ("ars:0.1:0", "the growth of ars is 0.0; it must be a number > 0"),
        ("ars:0.1:inf", "the growth of ars is inf; it must be a number > 0"),
    ],
)
def test_refuses_gossip_rates(text, said):
    with pytest.raises(ValueError) as error:
        schedules.gossip_rate(text, epoch_steps=2)
    assert said in str(error.value)
