"""Arithmetic on trees of stacked arrays, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import trees


def test_axpy():
    x = {"w": jnp.array([[1.0, 2.0]]), "b": (jnp.array([3.0]),)}
    y = {"w": jnp.array([[10.0, 20.0]]), "b": (jnp.array([30.0]),)}
    for a in (-0.5, jnp.float32(-0.5)):
        z = trees.axpy(a, x, y)
        np.testing.assert_array_equal(z["w"], [[9.5, 19.0]])
        np.testing.assert_array_equal(z["b"][0], [28.5])


def test_a_moving_average_keeps_the_share_of_the_old():
    old, new = {"w": jnp.array([[4.0, 8.0]])}, {"w": jnp.array([[0.0, 16.0]])}
    np.testing.assert_array_equal(trees.moving_average(0.75, old, new)["w"], [[3.0, 10.0]])


@pytest.mark.parametrize("a", [0.5, jnp.float32(0.5)])
def test_arithmetic_keeps_the_dtype(a):
    x = {"w": jnp.ones(2, jnp.bfloat16)}
    assert trees.axpy(a, x, x)["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(trees.axpy(a, x, x)["w"].astype(jnp.float32), [1.5, 1.5])


def test_a_copy_has_buffers_of_its_own():
    x = {"w": jnp.arange(3.0)}
    y = trees.copy(x)
    assert y["w"].unsafe_buffer_pointer() != x["w"].unsafe_buffer_pointer()
    np.testing.assert_array_equal(y["w"], [0.0, 1.0, 2.0])


def test_stack_gives_every_agent_the_same():
    stacked = trees.stack({"w": jnp.array([[1.0, 2.0]]), "n": jnp.int32(7)}, 3)
    np.testing.assert_array_equal(stacked["w"], [[[1.0, 2.0]]] * 3)
    np.testing.assert_array_equal(stacked["n"], [7, 7, 7])
    assert stacked["n"].dtype == jnp.int32


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 1, 4)])
def test_a_number_for_each_agent_broadcasts_against_its_values(shape):
    factors = jnp.array([10.0, -1.0])
    scaled = trees.per_agent(factors, jnp.ones(shape)) * jnp.ones(shape)
    np.testing.assert_array_equal(scaled[0], np.full(shape[1:], 10.0))
    np.testing.assert_array_equal(scaled[1], np.full(shape[1:], -1.0))


def test_there_is_something_for_each_neighbour():
    zeros = trees.per_edge({"w": jnp.ones((5, 3, 2), jnp.bfloat16), "n": jnp.ones(5, int)}, 4)
    assert zeros["w"].shape == (5, 4, 3, 2) and zeros["w"].dtype == jnp.bfloat16
    assert zeros["n"].shape == (5, 4) and zeros["n"].dtype == jnp.int32
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))


def test_where_takes_all_of_one():
    x, y = {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([3.0, 4.0])}
    np.testing.assert_array_equal(trees.where(jnp.bool_(True), x, y)["a"], [1.0, 2.0])
    np.testing.assert_array_equal(trees.where(jnp.bool_(False), x, y)["a"], [3.0, 4.0])


def test_where_agent_takes_agents_by_themselves_and_shares_scalars():
    new = {"w": jnp.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), "step": jnp.int32(5)}
    old = {"w": -new["w"], "step": jnp.int32(4)}
    chosen = trees.where_agent(jnp.array([True, False, True]), new, old)
    np.testing.assert_array_equal(chosen["w"], [[1.0, 1.0], [-2.0, -2.0], [3.0, 3.0]])
    assert chosen["step"] == 5


@pytest.mark.parametrize(
    "dtypes, expected",
    [((jnp.bfloat16,), "float32"), ((jnp.float32,), "float32"), ((jnp.int32,), "float32")],
)
def test_sums_are_at_least_in_float32(dtypes, expected):
    assert trees.sum_type([jnp.zeros(1, dtype) for dtype in dtypes]) == expected


def test_one_leaf_in_float64_makes_sums_so():
    with jax.enable_x64(True):
        assert trees.sum_type([jnp.zeros(1, jnp.float32), jnp.zeros(1, jnp.float64)]) == "float64"
