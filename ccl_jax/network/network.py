"""The network: the only place where values cross between agents.

A `Network` is a topology placed on the device, with the channel that messages go through. In every step
it hands out a `Round`, and algorithms and losses do all their talking through that.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax import randomness, ranges
from ccl_jax.graphs.topology import Topology
from ccl_jax.network import blocks
from ccl_jax.network.blocks import Block
from ccl_jax.network.channels import Channel, Compressed, Exact, Feedback, Lagging, Noisy
from ccl_jax.network.compression import Compressor
from ccl_jax.network.faults import Conditions, Delivery, Faults, Perfect
from ccl_jax.network.memory import Memory
from ccl_jax.network.mixing import Tables, choose
from ccl_jax.network.round import Round

PyTree = Any


class Network:
    """A topology placed on the device, and how it is used.

    Args:
      topology: The graph and its mixing weights.
      local_steps: Agents talk in every `local_steps`-th step only, and work alone in between.
      coins: Seed of coins, one a step for all agents, by which they talk with probability
        1 / local_steps instead; None for regular exchanges.
      gossip_steps: How often `mix` mixes in a step; a graph over time moves on each time.
      compressor: Compresses what is sent (as CHOCO-SGD, Koloskova et al., arXiv:1902.00340:
        neighbours keep a copy xh of each x and are sent the compressed difference) and, with error
        feedback, what is replied; in both unless the caller asks for exact values. None compresses
        nothing.
      compression_start: Where the copies xh start: "model", the common start, or "zero", as published;
        see `channels.Compressed`.
      devices: Number of equal blocks into which the agents are cut, one a device. With more than
        one, rounds can be made inside of `ccl_jax.devices`' sharded step only.
      faults: What fails in each step; None for a network that behaves.
      message_noise: Standard deviation of the noise on every number of every message, before
        compression; see `channels.Noisy`. Exact averages over all agents have none.
      noise_seed: Seed of it.
      average_from: The step, counted from 0, from which on `mix` is the exact mean over all agents, by
        an all-reduce that is paid for instead of messages to neighbours; None for never.
      mixing: How averages are computed: "dense", "sparse" or "auto"; see `ccl_jax.network.mixing`.

    Raises:
      ValueError: A count below 1, devices that do not divide the agents, an unknown `mixing`,
        compression where receivers of one message would know different things, a start of copies
        without compression, or exact averages with compression or faults.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        local_steps: int = 1,
        coins: int | None = None,
        gossip_steps: int = 1,
        compressor: Compressor | None = None,
        compression_start: str = "model",
        devices: int = 1,
        faults: Faults | None = None,
        message_noise: float = 0.0,
        noise_seed: int = 0,
        average_from: int | None = None,
        mixing: str = "auto",
    ) -> None:
        ranges.check("local_steps", local_steps)
        ranges.check("gossip_steps", gossip_steps)
        ranges.check("message_noise", message_noise)
        self.topology = topology
        self.local_steps = local_steps
        self.coins = coins
        self.gossip_steps = gossip_steps
        self.compressor = compressor
        self.faults = faults or Faults()
        self.message_noise = message_noise
        self.noise_seed = noise_seed
        self.average_from = average_from
        if average_from is not None and (compressor is not None or self.faults.any):
            raise ValueError(
                "merge_at averages exactly over all agents, which compressed or lost messages cannot; "
                "leave it out, or compression and faults"
            )
        self.channels = _channels(
            topology, compressor, compression_start, self.faults, message_noise
        )
        self.schedule = blocks.make_schedule(topology, devices)
        self.weighted_sums = choose(mixing, topology.degree, topology.agents)
        self._tables = (topology.weights, topology.incoming, topology.outgoing)

    def whole(self) -> "Network":
        """The same network on one device; enough to learn shapes from."""
        other = copy.copy(self)
        other.schedule = blocks.make_schedule(self.topology, 1)
        return other

    @property
    def remembers(self) -> bool:
        """Whether a step depends on what was said, or failed, in those before."""
        return self.compressor is not None or self.faults.any

    def talks(self, step: jax.Array) -> jax.Array:
        """Scalar bool, whether there is an exchange in a step."""
        if self.coins is None or self.local_steps == 1:
            return step % self.local_steps == 0
        key = randomness.step_key(jax.random.key(self.coins), randomness.Stream.EXCHANGES, step)
        return jax.random.bernoulli(key, 1 / self.local_steps)

    def noise_key(self, step: jax.Array) -> jax.Array | None:
        """The key of all noise of a step; None without noise."""
        if not self.message_noise:
            return None
        return randomness.step_key(jax.random.key(self.noise_seed), randomness.Stream.NOISE, step)

    def start(self, say: Callable[[Round], Any]) -> Memory:
        """The memory before the first step.

        Args:
          say: `say(round)` does all the talking of one step; it is traced for shapes, and not run.
        """

        def remember() -> Memory:
            talk = self.whole().round(0)
            say(talk)
            return talk.memory()

        return Memory.before(jax.eval_shape(remember))

    def round(self, step: jax.Array | int, memory: Memory = Memory()) -> Round:  # noqa: B008
        """The communication of one step.

        Args:
          step: Steps done so far; a graph over time repeats after its last round.
          memory: What the round of the step before returned from `Round.memory`, or `start`. Without
            it everything that is sent is new to its receivers.
        """
        return Round(self, jnp.asarray(step, jnp.int32), memory)

    def tables(
        self, hop: jax.Array, active: jax.Array, block: Block, conditions: Conditions | Perfect
    ) -> tuple[Tables, Delivery]:
        """The graph as the agents of a block see it: who is where in what they collect.

        Args:
          hop: Scalar int32, mixes done since the start of the run.
          active: Scalar bool, whether anybody talks.
          block: The agents here.
          conditions: What works in the step.
        """
        r = hop % self.topology.rounds
        # In float64 where that is on, so that a test of the mathematics has exact weights.
        weights, incoming, outgoing = jax.tree.map(
            lambda table: jnp.asarray(table)[r, block.ids], self._tables
        )
        if self.local_steps > 1:
            own = block.ids[:, None] == jnp.arange(self.topology.agents, dtype=jnp.int32)[None]
            weights = jnp.where(active, weights, own.astype(weights.dtype))
            incoming = incoming._replace(mask=incoming.mask & active)
            outgoing = outgoing._replace(mask=outgoing.mask & active)
        columns = jnp.asarray(self._tables[0])[r][:, block.ids].T
        columns = jnp.where(active, columns, 0.0)
        weights = conditions.reweigh(weights, columns, block.ids, self.topology.stochastic)
        delivery = conditions.delivery(incoming, outgoing)
        tables = Tables(
            jnp.where(block.valid[None], weights[:, block.members], 0.0),
            jnp.take_along_axis(weights, block.ids[:, None], axis=1)[:, 0],
            delivery.incoming._replace(peers=block.place[delivery.incoming.peers]),
            delivery.outgoing._replace(peers=block.place[delivery.outgoing.peers]),
        )
        return tables, delivery


class Channels(NamedTuple):
    """Which values go through which channel.

    Attributes:
      untouched: Of what nothing must change: neither compression nor noise.
      exact: Of what must not be compressed.
      usual: Of all other messages.
      exact_replies: Of replies that must not be compressed.
      replies: Of all others.
    """

    untouched: Channel
    exact: Channel
    usual: Channel
    exact_replies: Channel
    replies: Channel


def _channels(
    topology: Topology,
    compressor: Compressor | None,
    start: str,
    faults: Faults,
    message_noise: float,
) -> Channels:
    """What a network's messages go through.

    Raises:
      ValueError: Compression where receivers of one message would know different things, or a start of
        copies that there are not.
    """
    noisy = lambda channel: Noisy(message_noise, channel) if message_noise else channel
    untouched = Lagging(faults.delay) if faults.straggle else Exact()
    exact, replies = noisy(untouched), noisy(Exact())
    ranges.check("compression_start", start)
    if compressor is None:
        if start != "model":
            raise ValueError(
                f"compression_start is {start}, and nothing is compressed; leave it out, or name a "
                "compression"
            )
        return Channels(untouched, exact, exact, replies, replies)
    why = "compression sends differences to what all neighbours know"
    if faults.drop or faults.offline:
        raise ValueError(
            f"{why}, and where messages are lost they know different things; leave out compression, "
            "or the faults that lose messages"
        )
    if topology.rounds > 1:
        raise ValueError(
            f"{why}, and on {topology.name} neighbours change; leave out compression, or take a graph "
            "that stays"
        )
    smaller = Compressed(compressor, exact, start == "zero")
    return Channels(untouched, exact, smaller, replies, Feedback(compressor, replies))
