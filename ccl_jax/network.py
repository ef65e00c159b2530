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

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ccl_jax import blocks, mixing
from ccl_jax.blocks import Block
from ccl_jax.compression import Compressor, feedback
from ccl_jax.faults import Conditions, Faults, Losses
from ccl_jax.mixing import Tables
from ccl_jax.topology import Edges, Topology
from ccl_jax.traffic import Ledger, Traffic, message_bytes

PyTree = Any


class Network:
    """A topology placed on the device, and how it is used.

    Args:
      topology: The graph and its mixing weights.
      local_steps: Agents talk in every `local_steps`-th step only, and work alone in between.
      gossip_steps: How often `mix` mixes in a step; a graph over time moves on each time.
      compressor: Compresses what `mix` sends (as CHOCO-SGD, Koloskova et al., arXiv:1902.00340:
        neighbours keep a copy xh of each x and are sent the compressed difference) and, with error
        feedback, what `reply` sends where its caller allows it. None sends exact values.
      devices: Number of equal blocks into which the agents are cut, one a device. With more than
        one, rounds can be made inside of `ccl_jax.parallel`'s sharded step only.
      faults: What fails in each step; None for a network that behaves.

    Raises:
      ValueError: A count below 1, devices that do not divide the agents, or compression with faults
        or on a graph that changes.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        local_steps: int = 1,
        gossip_steps: int = 1,
        compressor: Compressor | None = None,
        devices: int = 1,
        faults: Faults | None = None,
    ) -> None:
        for name, value in (("local_steps", local_steps), ("gossip_steps", gossip_steps)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.faults = faults if faults is not None and faults.any else None
        if self.faults is not None and compressor is not None:
            raise ValueError(
                "compression sends differences to what neighbours know, which lost messages make "
                "wrong; leave out compression or faults"
            )
        if compressor is not None and topology.rounds > 1:
            raise ValueError(
                f"compression sends differences to what neighbours know, and on {topology.name} "
                "neighbours change; leave out compression, or take a graph that stays"
            )
        self.topology = topology
        self.local_steps = local_steps
        self.gossip_steps = gossip_steps
        self.compressor = compressor
        self.schedule = blocks.make_schedule(topology, devices)
        self._tables = (topology.weights, topology.incoming, topology.outgoing)
        self.sparse = mixing.sparse_is_cheaper(topology.degree, topology.agents)

    def whole(self) -> "Network":
        """The same network on one device; enough to learn shapes from."""
        if self.schedule.devices == 1:
            return self
        return Network(
            self.topology,
            local_steps=self.local_steps,
            gossip_steps=self.gossip_steps,
            compressor=self.compressor,
            faults=self.faults,
        )

    def round(self, step: jax.Array | int, memory: PyTree = ()) -> "Round":
        """The communication of one step.

        Args:
          step: Steps done so far; a graph over time repeats after its last round.
          memory: What the round of the step before returned from `Round.memory`; () at first.
        """
        step = jnp.asarray(step, jnp.int32)
        active = step % self.local_steps == 0
        first = step // self.local_steps * self.gossip_steps
        block = Block(self.schedule)
        conditions, kept = None, ()
        if self.faults is not None:
            old, memory = (memory[0], memory[1:]) if memory else (None, ())
            conditions, new = self.faults.draw(step, block.ids, self.topology.agents, old)
            kept = (new,)
        hops = [
            self._at((first + hop) % self.topology.rounds, active, block, conditions)
            for hop in range(self.gossip_steps)
        ]
        return Round(
            self, block, hops, active, step == 0, memory, self.compressor, conditions, kept
        )

    def _at(
        self, r: jax.Array, active: jax.Array, block: Block, conditions: Conditions | None
    ) -> tuple[Tables, Losses | None]:
        """Round r's graph as the agents of a block see it: who is where in what they collect."""
        weights, incoming, outgoing = jax.tree.map(
            lambda table: jnp.asarray(table)[r, block.ids], self._tables
        )
        if self.local_steps > 1:
            own = block.ids[:, None] == jnp.arange(self.topology.agents, dtype=jnp.int32)[None]
            weights = jnp.where(active, weights, own.astype(weights.dtype))
            incoming = incoming._replace(mask=incoming.mask & active)
            outgoing = outgoing._replace(mask=outgoing.mask & active)
        losses = None
        if conditions is not None:
            columns = jnp.asarray(self._tables[0])[r][:, block.ids].T
            weights = conditions.reweigh(
                weights, jnp.where(active, columns, 0.0), block.ids, self.topology.stochastic
            )
            losses = conditions.losses(incoming, outgoing)
            incoming, outgoing = losses.incoming, losses.outgoing
        tables = Tables(
            jnp.where(block.valid[None], weights[:, block.members], 0.0),
            jnp.take_along_axis(weights, block.ids[:, None], axis=1)[:, 0],
            incoming._replace(peers=block.place[incoming.peers]),
            outgoing._replace(peers=block.place[outgoing.peers]),
        )
        return tables, losses


class Round:
    """The communication of one step; made by `Network.round`, used inside that step.

    All of it works on a block of agents; on one device that is everybody.

    Attributes:
      incoming: `Edges` with `[agents, degree]` tables: who is heard.
      outgoing: `Edges` with `[agents, out_degree]` tables: who listens.
      active: Scalar bool, False in a step in which the agents work alone.
      ids: `[agents]` int32, the numbers of the agents in this block.
      conditions: What works in this step; None in a network without faults.
    """

    def __init__(
        self,
        network: Network,
        block: Block,
        hops: Sequence[tuple[Tables, Losses | None]],
        active: jax.Array,
        first: jax.Array,
        memory: PyTree,
        compressor: Compressor | None,
        conditions: Conditions | None = None,
        fault_memory: PyTree = (),
    ) -> None:
        self._tables, self._losses = hops[0]
        self.incoming, self.outgoing = self._tables.incoming, self._tables.outgoing
        self.conditions = conditions
        self.active = active
        self.ids = block.ids
        self._network = network
        self._block = block
        self._hops = hops
        self._first = first
        self._compressor = compressor
        # Memories are used and renewed in the order of the calls, which is the same in every step.
        self._fault_memory = fault_memory
        self._old_memory = list(memory)
        self._new_memory: list[PyTree] = []
        self._ledger = Ledger()

    @property
    def agents(self) -> int:
        """Number of all agents, N."""
        return self._network.topology.agents

    @property
    def mask(self) -> jax.Array:
        """`[agents, degree]` bool: which entries of `gather` and `cross` are real neighbours."""
        return self.incoming.mask

    @property
    def neighbor_weights(self) -> jax.Array:
        """`[agents, degree]` float32: w_ij for each table entry (shared by entries that repeat)."""
        return self._tables.neighbor_weights

    @property
    def own_weights(self) -> jax.Array:
        """`[agents]` float32: w_ii."""
        return self._tables.own_weights

    def mix(self, tree: PyTree) -> PyTree:
        """Gossip: `[Wx]_i = sum_j W[i, j] x_j` for every leaf `[agents, ...]` of `tree`.

        With compression x + (W - I) xh, where xh is what neighbours know of x. That keeps the mean.
        """
        for hop, losses in self._hops:
            tree = self._mix_once(hop, losses, tree)
        return tree

    def _mix_once(self, hop: Tables, losses: Losses | None, tree: PyTree) -> PyTree:
        if self._compressor is None and (losses is None or not self._network.faults.straggle):
            self._ledger.send(tree, hop.outgoing.mask, losses and losses.sent)
            return self._average_neighbors(hop, tree)
        if self._compressor is None:
            sent = self._lag(tree)
            self._ledger.send(tree, hop.outgoing.mask, losses.sent, known=sent)
            mixed = self._average_neighbors(hop, sent)
            # Agents know their own values as they are.
            own = lambda x: hop.own_weights.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            return jax.tree.map(lambda m, x, s: m + own(x) * (x - s), mixed, tree, sent)
        # All agents start alike, so at first everyone knows everything.
        known = where(self._first, tree, self._recall(tree))
        news = self._compressor(jax.tree.map(jnp.subtract, tree, known), lead=1)
        heard = jax.tree.map(jnp.add, known, news)
        known = where(self.active, heard, known)
        self._new_memory.append(known)
        size = self._compressor.message_bytes(tree, lead=1)
        self._ledger.send(tree, hop.outgoing.mask, size=size, known=known)
        mixed = self._average_neighbors(hop, known)
        return jax.tree.map(lambda x, w, h: x + (w - h), tree, mixed, known)

    def _lag(self, tree: PyTree) -> PyTree:
        """What is sent: by stragglers, what they had some rounds ago."""
        delay = self._network.faults.delay
        # All agents start alike, so before the start everyone had what it has now.
        always = jax.tree.map(lambda x: jnp.repeat(x[:, None], delay, axis=1), tree)
        past = where(self._first, always, self._recall(always))
        later = jax.tree.map(
            lambda p, x: jnp.concatenate([p[:, 1:], x[:, None]], axis=1), past, tree
        )
        self._new_memory.append(where(self.active, later, past))
        late = self.conditions.late
        choose = lambda p, x: jnp.where(late.reshape(-1, *[1] * (x.ndim - 1)), p[:, 0], x)
        return jax.tree.map(choose, past, tree)

    def _average_neighbors(self, hop: Tables, tree: PyTree) -> PyTree:
        collected = jax.tree.map(self._block.collect, tree)
        if self._network.sparse:
            return mixing.sparse(hop, tree, collected)
        return mixing.dense(hop, collected)

    def gather(self, tree: PyTree) -> PyTree:
        """Each agent's neighbours' values.

        Args:
          tree: Leaves `[agents, ...]`.

        Returns:
          Leaves `[agents, degree, ...]`, 0 where there is no neighbour.
        """
        self._ledger.send(tree, self.outgoing.mask, self._losses and self._losses.sent)
        return self._take(tree if self._losses is None else self._ledger.known(tree), self.incoming)

    def reply(
        self, tree: PyTree, *, compress: bool = False, message_bytes: int | None = None
    ) -> PyTree:
        """Returns values to the neighbours they were made for.

        Args:
          tree: Leaves `[agents, degree, ...]`: entry (i, d) was made by agent i for the neighbour
            that it hears at place d of its table.
          compress: Whether the network's compression, if any, may be used on these values.
          message_bytes: Size of one message, where the caller has compressed it.

        Returns:
          Leaves `[agents, out_degree, ...]`: entry (j, o) was made for j by its o-th listener;
          0 where there is none. In an undirected graph out_degree is degree and the order is that
          of `gather`.
        """
        if compress and self._compressor is not None:
            old = self._recall(tree)
            tree, error = feedback(self._compressor, tree, old, lead=2)
            # What is not sent is not forgotten either.
            self._new_memory.append(where(self.active, error, old))
            message_bytes = self._compressor.message_bytes(tree, lead=2)
        arrive, reach, sent = self.outgoing, self.incoming.mask, None
        if self._losses is not None:
            arrive = arrive._replace(mask=self._losses.replies_arrive)
            reach, sent = self._losses.replies_reach, reach
        self._ledger.send(tree, reach, sent, lead=2, size=message_bytes)
        return self._take(tree, arrive, at_slots=True)

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
        same numbers by letting model j visit its listeners' data, so that no model is copied. With
        compression, neighbours know and use their copy xh_j of what was mixed.

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
        message = models if message is None else message
        self._ledger.send(message, self.outgoing.mask, self._losses and self._losses.sent)
        models = self._ledger.known(models)
        visited = self._take(data, self.outgoing)
        values = jax.vmap(jax.vmap(fn, in_axes=(None, 0)))(models, visited)
        return self._take(values, self.incoming, at_slots=True)

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
            size = 2 * size * (self.agents - 1) // self.agents
        when = self.active & jnp.asarray(when)
        self._ledger.enter(size, jnp.where(when, messages, 0))
        mean = jax.tree.map(lambda x: jnp.broadcast_to(self._block.mean(x)[None], x.shape), tree)
        return where(when, mean, tree)

    def unmetered(self) -> "Round":
        """This round, exact and with a traffic count of its own: for measurements nobody sends."""
        return Round(
            self._network,
            self._block,
            self._hops,
            self.active,
            self._first,
            (),
            None,
            self.conditions,
        )

    def memory(self) -> PyTree:
        """What the next step's round has to be given; () without compression and faults."""
        return (*self._fault_memory, *self._new_memory)

    def traffic(self) -> Traffic:
        """What has been sent in this round so far."""
        return self._ledger.traffic(*self.ids.shape, faulty=self.conditions is not None)

    def _take(self, tree: PyTree, edges: Edges, at_slots: bool = False) -> PyTree:
        """The peers' values, or what they hold for this edge; 0 where there is no edge."""

        def take(x: jax.Array) -> jax.Array:
            x = self._block.collect(x)
            value = x[edges.peers, edges.slots] if at_slots else x[edges.peers]
            real = edges.mask.reshape(edges.mask.shape + (1,) * (value.ndim - edges.mask.ndim))
            return jnp.where(real, value, jnp.zeros_like(value))

        return jax.tree.map(take, tree)

    def _recall(self, tree: PyTree) -> PyTree:
        """The memory of this call from the step before; zeros where there is none yet."""
        place = len(self._new_memory)
        if place < len(self._old_memory):
            return self._old_memory[place]
        return jax.tree.map(jnp.zeros_like, tree)


def where(condition: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    """x where the scalar condition holds, else y, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)
