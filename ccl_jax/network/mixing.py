"""The arithmetic of gossip: weighted averages over neighbours, dense or sparse."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax import trees
from ccl_jax.graphs.topology import Edges
from ccl_jax.names import look_up

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
        weights = jnp.take_along_axis(self.weights, peers, axis=1) / repeats
        return jnp.where(mask, weights, jnp.zeros_like(weights))


@jax.jit
def dense(tables: Tables, tree: PyTree, collected: PyTree) -> PyTree:
    """`[Wx]_i = sum_j W[i, j] x_j`, an einsum with the mixing matrix.

    Args:
      tables: The graph.
      tree: The agents' own values, leaves `[agents, ...]`; they are in `collected`, too.
      collected: Leaves `[buffer, ...]`.
    """

    # Full precision, summed in float32: GPUs and TPUs would otherwise round weights to fewer bits.
    def mix(x: jax.Array) -> jax.Array:
        dtype = trees.sum_type(x)
        mixed = jnp.einsum(
            "ij,j...->i...",
            tables.weights.astype(dtype),
            x.astype(dtype),
            precision=jax.lax.Precision.HIGHEST,
        )
        return mixed.astype(x.dtype)

    return jax.tree.map(mix, collected)


@jax.jit
def sparse(tables: Tables, tree: PyTree, collected: PyTree) -> PyTree:
    """The same, neighbour by neighbour: the cost grows with the edges. Arguments as `dense`."""
    peers, weights = tables.incoming.peers, tables.neighbor_weights

    def mix(x: jax.Array, others: jax.Array) -> jax.Array:
        dtype = trees.sum_type(x)
        scale = lambda w, y: trees.per_agent(w.astype(dtype), y) * y.astype(dtype)
        total = scale(tables.own_weights, x)
        for d in range(peers.shape[1]):
            total += scale(weights[:, d], others[peers[:, d]])
        return total.astype(x.dtype)

    return jax.tree.map(mix, tree, collected)


def choose(kind: str, degree: int, agents: int) -> Callable[[Tables, PyTree, PyTree], PyTree]:
    """`dense` or `sparse` by name, or the cheaper of them.

    Neighbour sums touch degree + 1 rows an agent and the einsum all of them, but at the speed of a
    matrix product: about eight times as many rows in the same time.

    Args:
      kind: "dense", "sparse", or "auto" for the cheaper.
      degree: Largest number of neighbours.
      agents: Number of agents.

    Raises:
      ValueError: Another name.
    """
    cheaper = sparse if 8 * (degree + 1) < agents else dense
    return look_up("mixing", kind, {"auto": cheaper, "dense": dense, "sparse": sparse})
