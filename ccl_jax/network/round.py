"""The communication of one step, and all that agents can say to each other.

Algorithms and losses do all their talking through the `Round` of a step, which a `Network` hands out:

  send     a value to all who hear one, under a name; the result is a `Message`,
  mix      each agent's weighted average over its own and its neighbours' message (gossip),
  gather   the neighbours' messages as each agent knows them,
  cross    neighbours' messages, such as their models, applied to each agent's own data,
  reply    values that each agent made for its neighbours, returned to them,
  average  the exact mean over all agents (an all-reduce, for the methods that assume one).

A message is paid for once, when it is sent, and goes through the channel once; so one exchange of models
serves gossip and cross-features alike, and both see what receivers know. What a channel remembers from
step to step it remembers by the message's name. Bytes are those of the *protocol*: an agent's own copy
is not traffic, and what the simulation moves can be different and is not counted (see `cross`).

All arrays are stacked: they lead with the agents axis. Values made for or heard from neighbours are
`[agents, degree, ...]`, in the order of the topology's tables, and 0 where a table is padded.
"""

import copy
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ccl_jax import trees
from ccl_jax.graphs.topology import Edges
from ccl_jax.network.blocks import Block
from ccl_jax.network.channels import Channel, Moment
from ccl_jax.network.faults import Delivery
from ccl_jax.network.memory import Memory
from ccl_jax.network.messages import Message
from ccl_jax.network.mixing import Tables
from ccl_jax.network.traffic import Ledger, Traffic, all_reduce_bytes, message_bytes

if TYPE_CHECKING:
    from ccl_jax.network.network import Network

PyTree = Any


class Round:
    """The communication of one step; made by `Network.round`, used inside that step.

    All of it works on a block of agents; on one device that is everybody.

    Attributes:
      step: Scalar int32, steps done so far.
      ids: `[agents]` int32, the numbers of the agents in this block.
      active: Scalar bool, False in a step in which the agents work alone.
      conditions: What works in this step.
      incoming: `Edges` with `[agents, degree]` tables: who is heard.
      outgoing: `Edges` with `[agents, out_degree]` tables: who listens.
      exact: Scalar bool, whether `mix` is the mean over all agents; None where it never is.
    """

    def __init__(self, network: "Network", step: jax.Array, memory: Memory) -> None:
        self._network = network
        self._block = Block(network.schedule)
        self.step = step
        self.ids = self._block.ids
        self.active = network.talks(step)
        first = step == 0 if memory.fresh is None else memory.fresh
        chains = memory.faults or network.faults.start(len(self.ids), self.agents)
        self.conditions, self._chains = network.faults.draw(
            step, first, self.ids, self.agents, chains
        )
        self._first_hop = step // network.local_steps * network.gossip_steps
        self._tables, self._delivery = self._graph(0)
        self.incoming, self.outgoing = self._tables.incoming, self._tables.outgoing
        self._moment = Moment(first, self.active, self.conditions.late)
        self._noise_key = network.noise_key(step)
        # What channels remember, by the name of a message: before this step, and of what it has sent.
        self._old, self._new = memory.messages, {}
        # Averages over several gossip steps, by name: mixed twice, they are sent once.
        self._mixed: dict[str, PyTree] = {}
        self.exact = None if network.average_from is None else step >= network.average_from
        # Bytes and counts, by name, of messages that exact averages did without and nobody heard yet.
        self._unheard: dict[str, tuple[int, jax.Array]] = {}
        self._ledger = Ledger(len(self.ids), network.faults.any)
        self._measuring = False

    @property
    def agents(self) -> int:
        """Number of all agents, N."""
        return self._network.topology.agents

    @property
    def local_steps(self) -> int:
        """Steps from exchange to exchange, K; where coins are thrown, their mean."""
        return self._network.local_steps

    @property
    def mask(self) -> jax.Array:
        """`[agents, degree]` bool: which entries of `gather` and `cross` are real neighbours."""
        return self.incoming.mask

    @property
    def neighbor_weights(self) -> jax.Array:
        """`[agents, degree]` float: w_ij for each table entry (shared by entries that repeat)."""
        return self._tables.neighbor_weights

    @property
    def own_weights(self) -> jax.Array:
        """`[agents]` float: w_ii."""
        return self._tables.own_weights

    def send(
        self,
        name: str,
        tree: PyTree,
        *,
        compress: bool = True,
        noise: bool = True,
        alike: bool = True,
    ) -> Message:
        """Sends every agent's value to all who hear it.

        Args:
          name: What it is; a channel with memory remembers it by this name.
          tree: Leaves `[agents, ...]`.
          compress: Whether the network's compression, if any, may be used on these values.
          noise: Whether the network's noise, if any, may be added to values that are not compressed.
          alike: Whether all agents send the same in the first step of a run, as their models are, so
            that everyone knows it; not so what is made of gradients.

        Raises:
          ValueError: Something else has been sent under this name in the same step, or other names
            were in the step before.
        """
        channels = self._network.channels
        channel = channels.usual if compress else channels.exact if noise else channels.untouched
        known = self._through(channel, name, tree, alike)
        size = channel.message_bytes(tree)
        sent, lost = self._delivery.messages()
        if self.exact is not None and not self._measuring:
            # An all-reduce sends neighbours nothing; a loss that hears this message pays for it then.
            self._unheard[name] = size, sent
            sent = jnp.where(self.exact, 0, sent)
        self._pay(size, sent, lost)
        return Message(tree, known, channel, name, (name,))

    def mix(self, message: Message) -> PyTree:
        """Gossip: `[Wx]_i = sum_j W[i, j] x_j` for every leaf `[agents, ...]`.

        Agents use their own value exactly; see `Channel.average`. With several gossip steps the
        average is sent again, under the same name, and mixed again. From the network's `average_from`
        on it is the exact mean over all agents, by an all-reduce.

        Raises:
          ValueError: Several gossip steps of something that was not sent but derived, or a pair of
            messages that went through different channels.
        """
        gossiped = self._gossip(message)
        if self.exact is None:
            return gossiped
        size = all_reduce_bytes(message_bytes(message.own, lead=1), self.agents)
        when = self.exact & self.active
        self._pay(size, jnp.where(when, 1, jnp.zeros_like(self.ids)))
        return trees.where(when, self._mean(message.own), gossiped)

    def gather(self, message: Message) -> PyTree:
        """Each agent's neighbours' values, as it knows them.

        Returns:
          Leaves `[agents, degree, ...]`, 0 where there is no neighbour.
        """
        self._pay_if_owed(message)
        return self._take(message.known, self.incoming)

    def cross(
        self,
        fn: Callable[[PyTree, PyTree], PyTree],
        message: Message,
        data: PyTree,
        *,
        per_sample: bool = False,
    ) -> PyTree:
        """Applies each neighbour's message, such as its model, to each agent's own data.

        In the protocol agent i receives x_j and computes fn(x_j, data_i). The simulation gets the
        same numbers by letting model j visit its listeners' data, so that no model is copied.

        Args:
          fn: `fn(value, data)` for one sender's value and one agent's data.
          message: What was sent.
          data: Stacked data.
          per_sample: Whether `fn` acts on each of `data`'s samples `[batch, ...]` by itself. Those of
            all listeners are then one larger batch, which accelerators are much faster at.

        Returns:
          What `fn` returns, with leaves `[agents, degree, ...]`: entry (i, d) belongs to the message
          of i's neighbour d and the data of i; 0 where there is no neighbour.
        """
        self._pay_if_owed(message)
        visited = self._take(data, self.outgoing)
        if per_sample:
            values = _merged(fn)(message.known, visited)
        else:
            values = jax.vmap(jax.vmap(fn, in_axes=(None, 0)))(message.known, visited)
        return self._take(values, self.incoming, at_slots=True)

    def reply(
        self,
        name: str,
        tree: PyTree,
        *,
        compress: bool = True,
        message_bytes: int | None = None,
        unasked: bool = False,
    ) -> PyTree:
        """Returns values to the neighbours they were made for.

        Args:
          name: What they are; a channel with memory remembers them by this name.
          tree: Leaves `[agents, degree, ...]`: entry (i, d) was made by agent i for the neighbour
            that it hears at place d of its table.
          compress: Whether the network's compression, if any, may be used on these values.
          message_bytes: Size of one message, where the caller and not the network has compressed it.
          unasked: Whether they are sent, and paid for, also where nothing was heard in this step.

        Returns:
          Leaves `[agents, out_degree, ...]`: entry (j, o) was made for j by its o-th listener;
          0 where there is none. In an undirected graph out_degree is degree and the order is that
          of `gather`.

        Raises:
          ValueError: Something else has been sent under this name in the same step.
        """
        channels = self._network.channels
        compress = compress and message_bytes is None
        channel = channels.replies if compress else channels.exact_replies
        tree = self._through(channel, name, tree)
        arrive = self.outgoing._replace(mask=self._delivery.replies_arrive)
        size = channel.message_bytes(tree, 2) if message_bytes is None else message_bytes
        asking = self._delivery.sends_unasked if unasked else self.incoming.mask
        sent = asking.sum(axis=1, dtype=jnp.int32)
        reached = self._delivery.replies_reach.sum(axis=1, dtype=jnp.int32)
        self._pay(size, sent, sent - reached)
        return self._take(tree, arrive, at_slots=True)

    def average(
        self, tree: PyTree, *, when: jax.Array | bool = True, over_hub: bool = False
    ) -> PyTree:
        """The exact mean over all agents, given to each.

        Counted as a ring all-reduce; over a hub, as everyone's message to it and its answers.

        Args:
          tree: Leaves `[agents, ...]`.
          when: Scalar bool; where False (or when the agents work alone) the tree stays as it is.
          over_hub: Whether the agent with most neighbours does the averaging for all.
        """
        size = message_bytes(tree, lead=1)
        messages = jnp.ones(self.ids.shape, jnp.int32)
        if over_hub:
            hub = int(self._network.topology.adjacency[0].sum(axis=1).argmax())
            messages = jnp.where(self.ids == hub, self.agents - 1, messages)
        else:
            size = all_reduce_bytes(size, self.agents)
        when = self.active & jnp.asarray(when)
        self._pay(size, jnp.where(when, messages, 0))
        return trees.where(when, self._mean(tree), tree)

    def measuring(self) -> "Round":
        """The same round for measurements: nothing that is said in it is sent, counted or remembered."""
        other = copy.copy(self)
        other._measuring, other._mixed = True, {}
        return other

    def memory(self) -> Memory:
        """What the next step's round has to be given."""
        said = self._old | self._new
        kept = {name: memory for name, memory in said.items() if jax.tree.leaves(memory)}
        return Memory(self._chains, kept, jnp.zeros((), bool))

    def traffic(self) -> Traffic:
        """What has been sent in this round so far."""
        return self._ledger.traffic()

    def _gossip(self, message: Message) -> PyTree:
        """The average over neighbours, over all gossip steps of the network."""
        if message.channel is None:
            raise ValueError("what is mixed went through two channels; mix each by itself")
        mixed = self._average(self._tables, message.own, message.known, message.channel)
        more = self._network.gossip_steps - 1
        if more == 0:
            return mixed
        if message.name is None:
            raise ValueError(
                f"gossip_steps is {more + 1}, and what is mixed was derived from a message, so that it "
                "cannot be sent again; mix the message and derive from the average"
            )
        if message.name in self._mixed:
            return self._mixed[message.name]

        def hop(k, carry):
            tree, memory, messages, lost = carry
            tables, delivery = self._graph(k)
            known = tree
            if not self._measuring:
                when = self._moment_of(message.name, k)
                known, memory = message.channel.send(tree, memory, when, alike=False)
            sent, gone = delivery.messages()
            mixed = self._average(tables, tree, known, message.channel)
            return mixed, memory, messages + sent, lost + gone

        nothing = jnp.zeros_like(self.ids)
        carry = (mixed, self._new.get(message.name), nothing, nothing)
        # A loop of the program: many gossip steps are compiled as quickly as two.
        mixed, memory, messages, lost = jax.lax.fori_loop(1, more + 1, hop, carry)
        if not self._measuring:
            self._new[message.name] = memory
        self._mixed[message.name] = mixed
        if self.exact is not None:
            messages = jnp.where(self.exact, 0, messages)
        self._pay(message.channel.message_bytes(mixed), messages, lost)
        return mixed

    def _average(self, tables: Tables, own: PyTree, known: PyTree, channel: Channel) -> PyTree:
        """One gossip step: `own` mixed with what is `known` of the neighbours' values."""
        collected = self._block.collect(known)
        weighted = self._network.weighted_sums(tables, known, collected)
        return channel.average(weighted, own, known, tables.own_weights)

    def _mean(self, tree: PyTree) -> PyTree:
        """The mean over all agents, for each of the block."""
        return jax.tree.map(lambda x: jnp.broadcast_to(self._block.mean(x)[None], x.shape), tree)

    def _take(self, tree: PyTree, edges: Edges, at_slots: bool = False) -> PyTree:
        """The peers' values, or what they hold for this edge; 0 where there is no edge."""

        def take(x: jax.Array) -> jax.Array:
            value = x[edges.peers, edges.slots] if at_slots else x[edges.peers]
            real = edges.mask.reshape(edges.mask.shape + (1,) * (value.ndim - edges.mask.ndim))
            return jnp.where(real, value, jnp.zeros_like(value))

        return jax.tree.map(take, self._block.collect(tree))

    def _graph(self, hop: jax.Array | int) -> tuple[Tables, Delivery]:
        """The graph of the hop-th mix of this step."""
        return self._network.tables(
            self._first_hop + hop, self.active, self._block, self.conditions
        )

    def _through(self, channel: Channel, name: str, tree: PyTree, alike: bool = True) -> PyTree:
        """What receivers know of `tree`; the channel's memory of that name is renewed."""
        if self._measuring:
            return tree
        if name in self._new:
            raise ValueError(
                f"{name!r} has been sent in this step already; each message needs a name of its own"
            )
        memory = self._old.get(name, channel.start(tree))
        if self._old and name not in self._old and jax.tree.leaves(memory):
            raise ValueError(
                f"{name!r} is sent, and in the step before {', '.join(map(repr, self._old))} were: the "
                "channel remembers by these names, so they must be the same in every step"
            )
        known, self._new[name] = channel.send(tree, memory, self._moment_of(name), alike)
        return known

    def _moment_of(self, name: str, hop: jax.Array | int = 0) -> Moment:
        """The moment of the hop-th message of a name, with its keys."""
        if self._noise_key is None:
            return self._moment
        key = self._noise_key
        for part in (np.uint32(zlib.crc32(name.encode())), hop):
            key = jax.random.fold_in(key, part)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, self.ids)
        return self._moment._replace(keys=keys)

    def _pay(self, size: int, messages: jax.Array, lost: jax.Array | None = None) -> None:
        """Counts `messages [agents]` of `size` bytes, of which `lost [agents]` do not arrive."""
        if not self._measuring:
            self._ledger.enter(size, messages, lost)

    def _pay_if_owed(self, message: Message) -> None:
        """Pays, once, for a message that neighbours hear and exact averages did without."""
        for name in message.sources:
            if name in self._unheard and not self._measuring:
                size, sent = self._unheard.pop(name)
                self._pay(size, jnp.where(self.exact, sent, 0))


def _merged(fn: Callable[[PyTree, PyTree], PyTree]) -> Callable[[PyTree, PyTree], PyTree]:
    """`fn` of each agent on the samples `[agents, listeners, batch, ...]` of all its listeners."""

    def merged(known: PyTree, visited: PyTree) -> PyTree:
        listeners, batch = jax.tree.leaves(visited)[0].shape[1:3]
        merge = lambda x: x.reshape(x.shape[0], listeners * batch, *x.shape[3:])
        divide = lambda x: x.reshape(x.shape[0], listeners, batch, *x.shape[2:])
        values = jax.vmap(fn)(known, jax.tree.map(merge, visited))
        return jax.tree.map(divide, values)

    return merged
