"""Arithmetic on trees of stacked arrays, whose leaves lead with the agents axis.

What `optax.tree` has is taken from there.
"""

from typing import Any, NamedTuple

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


def form(x: Any) -> str:
    """Type and shape of a leaf in words, as float32[2, 3]; of what is no array, what it is."""
    kind = _dtype(x)
    return type(x).__name__ if kind is None else f"{kind}{list(jnp.shape(x))}"


def is_number(x: Any) -> bool:
    """Whether a leaf is a number or an array of numbers or truths, and no text or key."""
    kind = _dtype(x)
    return kind is not None and any(jnp.issubdtype(kind, of) for of in (jnp.number, jnp.bool_))


def _dtype(x: Any) -> Any:
    """Of an array or number; of a text, which may name a type, None."""
    known = hasattr(x, "dtype") or isinstance(x, (bool, int, float, complex))
    return jnp.result_type(x) if known else None


class Difference(NamedTuple):
    """Where two trees differ.

    Attributes:
      at: Path of a leaf; "" for the tree itself.
      now: What is there, in words; None for no leaf.
      before: What was there.
    """

    at: str
    now: str | None
    before: str | None


def difference(now: PyTree, before: PyTree) -> Difference | None:
    """The first leaf that has another type or shape than before; None where none has.

    Where only containers differ, as a list and a tuple, it is the tree itself.
    """
    new, old = (
        {jax.tree_util.keystr(at): form(x) for at, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (now, before)
    )
    for at in [*new, *old]:
        if new.get(at) != old.get(at):
            return Difference(at, new.get(at), old.get(at))
    if jax.tree.structure(now) != jax.tree.structure(before):
        return Difference("", None, None)
    return None


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
