"""The network: the only place where values cross between agents.

A `Network` is a topology placed on the device. In every step it hands out a `Round`, and algorithms
and the cross-feature loss do all their talking through it:

  mix      each agent's weighted average over itself and its neighbours (gossip),
  gather   each agent's neighbours' values,
  reply    values that each agent made for its neighbours, returned to them,
  cross    neighbours' models applied to each agent's own data,
  average  the exact mean over all agents (an all-reduce, for the methods that assume one).

A round also counts what the *protocol* sends: an agent's own copy is not traffic, and a value that
was sent once in a round is not paid for twice, so that one exchange of models serves gossip and
cross-features alike. What the simulation moves can be different and is not counted (see `cross`).

All arrays are stacked: they lead with the agents axis. Values made for or heard from neighbours are
`[agents, degree, ...]`, in the order of the topology's tables, and 0 where a table is padded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax.topology import Edges, Topology

PyTree = Any


class Traffic(NamedTuple):
    """What a round sent, as (size, number) pairs so that large totals stay exact.

    Attributes:
      message_bytes: `[exchanges]` int32, the size of one message of each exchange.
      messages: `[exchanges, agents]` int32, how many of them each agent sent.
    """

    message_bytes: jax.Array
    messages: jax.Array

    def bytes_sent(self) -> np.ndarray:
        """`[..., agents]` int64 bytes that each agent sent; leading axes (steps) are kept."""
        sizes = np.asarray(self.message_bytes, np.int64)[..., None]
        return (sizes * np.asarray(self.messages, np.int64)).sum(axis=-2)


class Network:
    """A topology placed on the device.

    Args:
      topology: The graph and its mixing weights.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._weights = jnp.asarray(topology.weights, jnp.float32)
        self._incoming = jax.tree.map(jnp.asarray, topology.incoming)
        self._outgoing = jax.tree.map(jnp.asarray, topology.outgoing)

    def round(self, step: jax.Array | int) -> "Round":
        """The communication of step `step`; a graph over time repeats after its last round."""
        r = jnp.asarray(step, jnp.int32) % self.topology.rounds
        weights, incoming, outgoing = jax.tree.map(
            lambda table: table[r], (self._weights, self._incoming, self._outgoing)
        )
        return Round(weights, incoming, outgoing)


class Round:
    """One round of communication; made by `Network.round`, used inside one step.

    Attributes:
      weights: `[agents, agents]` the mixing matrix W of this round.
      incoming: `Edges` with `[agents, degree]` tables: who is heard.
      outgoing: `Edges` with `[agents, out_degree]` tables: who listens.
    """

    def __init__(self, weights: jax.Array, incoming: Edges, outgoing: Edges) -> None:
        self.weights = weights
        self.incoming = incoming
        self.outgoing = outgoing
        self._exchanges: list[tuple[int, jax.Array]] = []
        # The arrays sent so far, kept alive so that identity means equality.
        self._sent: list[jax.Array] = []

    @property
    def agents(self) -> int:
        """Number of agents."""
        return self.weights.shape[0]

    @property
    def mask(self) -> jax.Array:
        """`[agents, degree]` bool: which entries of `gather` and `cross` are real neighbours."""
        return self.incoming.mask

    @property
    def neighbor_weights(self) -> jax.Array:
        """`[agents, degree]` float32: w_ij for each table entry (shared by entries that repeat)."""
        own = jnp.arange(self.agents)[:, None]
        peers, mask = self.incoming.peers, self.incoming.mask
        same = (peers[:, :, None] == peers[:, None, :]) & mask[:, None, :]
        repeats = jnp.maximum(same.sum(axis=2), 1).astype(jnp.float32)
        return jnp.where(mask, self.weights[own, peers] / repeats, 0.0)

    def mix(self, tree: PyTree) -> PyTree:
        """Gossip: `[Wx]_i = sum_j W[i, j] x_j` for every leaf `[agents, ...]` of `tree`."""
        self._send(tree, self.outgoing.mask)
        return _mix(self.weights, tree)

    def gather(self, tree: PyTree) -> PyTree:
        """Each agent's neighbours' values.

        Args:
          tree: Leaves `[agents, ...]`.

        Returns:
          Leaves `[agents, degree, ...]`, 0 where there is no neighbour.
        """
        self._send(tree, self.outgoing.mask)
        return _take(tree, self.incoming.peers, None, self.incoming.mask)

    def reply(self, tree: PyTree) -> PyTree:
        """Returns values to the neighbours they were made for.

        Args:
          tree: Leaves `[agents, degree, ...]`: entry (i, d) was made by agent i for the neighbour
            that it hears at place d of its table.

        Returns:
          Leaves `[agents, out_degree, ...]`: entry (j, o) was made for j by its o-th listener;
          0 where there is none. In an undirected graph out_degree is degree and the order is that
          of `gather`.
        """
        self._send(tree, self.incoming.mask, lead=2)
        return _take(tree, self.outgoing.peers, self.outgoing.slots, self.outgoing.mask)

    def cross(
        self,
        fn: Callable[[PyTree, PyTree], PyTree],
        models: PyTree,
        data: PyTree,
        *,
        message: PyTree | None = None,
    ) -> PyTree:
        """Applies each neighbour's model to each agent's own data.

        In the protocol agent i receives x_j and computes fn(x_j, data_i). The simulation gets the
        same numbers by letting model j visit its listeners' data, so that no model is copied.

        Args:
          fn: `fn(model, data)` for one model and one agent's data.
          models: Stacked models.
          data: Stacked data.
          message: What the agents send so that their neighbours know `models`; the default is
            `models` itself.

        Returns:
          What `fn` returns, with leaves `[agents, degree, ...]`: entry (i, d) belongs to the model
          of i's neighbour d and the data of i; 0 where there is no neighbour.
        """
        self._send(models if message is None else message, self.outgoing.mask)
        visited = _take(data, self.outgoing.peers, None, self.outgoing.mask)
        values = jax.vmap(jax.vmap(fn, in_axes=(None, 0)))(models, visited)
        return _take(values, self.incoming.peers, self.incoming.slots, self.incoming.mask)

    def average(self, tree: PyTree) -> PyTree:
        """The exact mean over all agents, given to each; counted as a ring all-reduce."""
        size = _message_bytes(tree, lead=1)
        share = 2 * size * (self.agents - 1) // self.agents
        self._exchanges.append((share, jnp.ones(self.agents, jnp.int32)))
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x.mean(axis=0, keepdims=True), x.shape), tree
        )

    def unmetered(self) -> "Round":
        """The same round with a traffic count of its own: for measurements that nobody sends."""
        return Round(self.weights, self.incoming, self.outgoing)

    def traffic(self) -> Traffic:
        """What has been sent in this round so far."""
        if not self._exchanges:
            return Traffic(jnp.zeros(0, jnp.int32), jnp.zeros((0, self.agents), jnp.int32))
        sizes, messages = zip(*self._exchanges, strict=True)
        return Traffic(jnp.asarray(sizes, jnp.int32), jnp.stack(messages))

    def _send(self, tree: PyTree, mask: jax.Array, lead: int = 1) -> None:
        new = [x for x in jax.tree.leaves(tree) if not any(x is old for old in self._sent)]
        self._sent += new
        if new:
            self._exchanges.append((_message_bytes(new, lead), mask.sum(axis=1, dtype=jnp.int32)))


@jax.jit
def _mix(weights: jax.Array, tree: PyTree) -> PyTree:
    # Full precision: GPUs and TPUs would otherwise round the weights to fewer bits.
    return jax.tree.map(
        lambda x: jnp.einsum(
            "ij,j...->i...", weights.astype(x.dtype), x, precision=jax.lax.Precision.HIGHEST
        ),
        tree,
    )


def _take(tree: PyTree, peers: jax.Array, slots: jax.Array | None, mask: jax.Array) -> PyTree:
    """x[peers] or x[peers, slots] for every leaf, 0 where mask is False."""

    def take(x: jax.Array) -> jax.Array:
        value = x[peers] if slots is None else x[peers, slots]
        real = mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))
        return jnp.where(real, value, jnp.zeros_like(value))

    return jax.tree.map(take, tree)


def _message_bytes(tree: PyTree, lead: int) -> int:
    """Bytes of one message: a leaf's size without its `lead` leading axes."""
    return sum(int(np.prod(x.shape[lead:])) * x.dtype.itemsize for x in jax.tree.leaves(tree))
