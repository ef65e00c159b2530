"""The arithmetic of gossip: weighted averages over neighbours, dense or sparse."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax.topology import Edges

PyTree = Any


class Tables(NamedTuple):
    """One round's graph, as the agents of a block see it.

    Attributes:
      weights: `[agents, buffer]`, for the rows that the block collects.
      own_weights: `[agents]`, w_ii.
      incoming: `Edges` with `[agents, degree]` tables; peers are rows of the buffer.
      outgoing: `Edges` with `[agents, out_degree]` tables; likewise.
    """

    weights: jax.Array
    own_weights: jax.Array
    incoming: Edges
    outgoing: Edges

    @property
    def neighbor_weights(self) -> jax.Array:
        """`[agents, degree]`: w_ij for each table entry (shared by entries that repeat)."""
        peers, mask = self.incoming.peers, self.incoming.mask
        same = (peers[:, :, None] == peers[:, None, :]) & mask[:, None, :]
        repeats = jnp.maximum(same.sum(axis=2), 1).astype(self.weights.dtype)
        return jnp.where(mask, jnp.take_along_axis(self.weights, peers, axis=1) / repeats, 0.0)


def sum_type(tree: PyTree) -> jnp.dtype:
    """The type of averages of a tree, and of weights and rates beside it: float32, or float64 for it."""
    double = any(x.dtype == jnp.float64 for x in jax.tree.leaves(tree))
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def sparse_is_cheaper(degree: int, agents: int) -> bool:
    """Whether neighbour sums cost less than the einsum with the mixing matrix.

    They touch degree + 1 rows an agent and the einsum all of them, but at the speed of a matrix
    product: about eight times as many rows in the same time.
    """
    return 8 * (degree + 1) < agents


@jax.jit
def dense(tables: Tables, collected: PyTree) -> PyTree:
    """`[Wx]_i = sum_j W[i, j] x_j`, an einsum with the mixing matrix.

    Args:
      tables: The graph.
      collected: Leaves `[buffer, ...]`.
    """

    # Full precision, summed in float32: GPUs and TPUs would otherwise round weights to fewer bits.
    def mix(x: jax.Array) -> jax.Array:
        mixed = jnp.einsum(
            "ij,j...->i...",
            tables.weights.astype(sum_type(x)),
            x.astype(sum_type(x)),
            precision=jax.lax.Precision.HIGHEST,
        )
        return mixed.astype(x.dtype)

    return jax.tree.map(mix, collected)


@jax.jit
def sparse(tables: Tables, tree: PyTree, collected: PyTree) -> PyTree:
    """The same, neighbour by neighbour: the cost grows with the number of edges.

    Args:
      tables: The graph.
      tree: The agents' own values, leaves `[agents, ...]`.
      collected: Leaves `[buffer, ...]`.
    """
    peers, weights = tables.incoming.peers, tables.neighbor_weights

    def mix(x: jax.Array, others: jax.Array) -> jax.Array:
        wide = sum_type(x)
        scale = lambda w, y: w.astype(wide).reshape(-1, *[1] * (y.ndim - 1)) * y.astype(wide)
        total = scale(tables.own_weights, x)
        for d in range(peers.shape[1]):
            total += scale(weights[:, d], others[peers[:, d]])
        return total.astype(x.dtype)

    return jax.tree.map(mix, tree, collected)
