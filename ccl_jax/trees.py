"""Arithmetic on trees of stacked arrays, whose leaves lead with the agents axis.

What `optax.tree` has is taken from there.
"""

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def axpy(a: jax.Array | float, x: PyTree, y: PyTree) -> PyTree:
    """a * x + y, leaf by leaf, with a scalar `a`, in the dtype of y."""
    return jax.tree.map(lambda u, v: jnp.asarray(a, v.dtype) * u.astype(v.dtype) + v, x, y)


def moving_average(decay: float, old: PyTree, new: PyTree) -> PyTree:
    """decay * old + (1 - decay) * new, leaf by leaf."""
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def sum_type(tree: PyTree) -> jnp.dtype:
    """The type of averages of a tree, and of weights and rates beside it: float32, or float64 for it."""
    double = any(x.dtype == jnp.float64 for x in jax.tree.leaves(tree))
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def copy(tree: PyTree) -> PyTree:
    """Buffers of their own: the step gives its buffers away, and each only once."""
    return jax.tree.map(jnp.copy, tree)


def stack(tree: PyTree, agents: int) -> PyTree:
    """Gives every agent its own copy: leaves `[...]` become `[agents, ...]`."""
    return jax.tree.map(lambda x: jnp.tile(x[None], (agents,) + (1,) * jnp.ndim(x)), tree)


def per_agent(values: jax.Array, x: jax.Array) -> jax.Array:
    """`[agents]` values in the shape in which they broadcast against `x [agents, ...]`."""
    return values.reshape(values.shape + (1,) * (x.ndim - 1))


def per_edge(tree: PyTree, degree: int) -> PyTree:
    """Zeros `[agents, degree, ...]` for every leaf `[agents, ...]`: something for each neighbour."""
    return jax.tree.map(lambda x: jnp.zeros((x.shape[0], degree, *x.shape[1:]), x.dtype), tree)


def where(condition: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    """x where the scalar condition holds, else y, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


def where_agent(chosen: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """For each agent, `new` where `chosen [agents]`, else `old`; scalars, which all share, are new."""

    def choose(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(per_agent(chosen, x), x, y) if x.ndim else x

    return jax.tree.map(choose, new, old)
