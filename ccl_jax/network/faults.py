"""Faults: links that lose messages, agents that go away and come back, agents that lag behind.

`Faults` says how often; in every step the network draws from it what fails, keyed by the seed and the
step alone, and mixes with what is left:

  links    An arriving message is lost with a probability, independently or in bursts: a link is good
           or bad by a two-state Markov chain. By default a bad link is bad in both directions.
  agents   An agent that is offline neither trains nor talks. As the chains start in equilibrium, some
           agents are away at first: they join late.
  lagging  A straggler sends the parameters that it had some exchanges ago.

Weights are made whole again. In averaging, what an agent misses goes to its own value, so rows still
sum to 1; if links fail in both directions and W is symmetric, columns do too, and the mean is kept. In
push-sum the sender keeps the mass that did not arrive (it must learn of the loss, as by a missing
acknowledgement), so columns still sum to 1 and no mass is lost.

A message that is lost on the way was sent and is counted as traffic; offline agents send nothing.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax import randomness
from ccl_jax.graphs.topology import Edges


@dataclasses.dataclass(frozen=True)
class Faults:
    """How often what fails.

    Attributes:
      drop: Probability that a link is bad in a step, in [0, 1).
      drop_burst: Mean number of steps that it then stays bad; None makes steps independent.
      one_way: Whether the two directions of a link fail independently.
      offline: Share of the time that an agent is offline, in [0, 1).
      offline_length: Mean number of steps that it then stays offline, at least 1.
      straggle: Probability that an agent lags in a step, in [0, 1].
      delay: How many exchanges ago it had what it then sends, at least 1; every gossip step is one.
      seed: Seed of the run.

    Raises:
      ValueError: A number out of range.
    """

    drop: float = 0.0
    drop_burst: float | None = None
    one_way: bool = False
    offline: float = 0.0
    offline_length: float = 1.0
    straggle: float = 0.0
    delay: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("drop", "offline"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        _check("straggle", self.straggle, 0 <= self.straggle <= 1, "in [0, 1]")
        _check("delay", self.delay, self.delay >= 1, "at least 1")
        for name, share, length in (
            ("drop_burst", self.drop, self.burst),
            ("offline_length", self.offline, self.offline_length),
        ):
            shortest = max(1.0, share / (1 - share))
            allowed = f"a number of steps, at least {shortest:g} for a share of {share:g}"
            _check(name, length, shortest - 1e-9 <= length < math.inf, allowed)

    @property
    def any(self) -> bool:
        """Whether anything ever fails."""
        return self.drop > 0 or self.offline > 0 or self.straggle > 0

    @property
    def burst(self) -> float:
        """Mean number of steps that a bad link stays bad."""
        return 1 / (1 - self.drop) if self.drop_burst is None else self.drop_burst

    def start(self, block: int, agents: int) -> "Chains | tuple[()]":
        """What `draw` remembers, before the first step; nothing where nothing fails.

        Args:
          block: Number of agents to tell it for.
          agents: Number of all agents.
        """
        return Chains(*[jnp.zeros((block, agents), bool)] * 3) if self.any else ()

    def draw(
        self,
        step: jax.Array,
        first: jax.Array,
        ids: jax.Array,
        agents: int,
        memory: "Chains | tuple[()]",
    ) -> tuple["Conditions | Perfect", "Chains | tuple[()]"]:
        """What fails in a step.

        Args:
          step: Scalar int32.
          first: Scalar bool, whether it is the first of a run.
          ids: `[block]` int32, the agents to tell it for.
          agents: Number of all agents.
          memory: What the step before returned, or `start`.
        """
        if not self.any:
            return Perfect(jnp.ones(ids.shape, bool), jnp.zeros(ids.shape, bool)), memory
        key = randomness.step_key(jax.random.key(self.seed), randomness.Stream.FAULTS, step)
        link_key, agent_key, lag_key = jax.random.split(key, 3)
        # Everybody draws everything, so that it does not matter which device holds whom.
        u = jax.random.uniform(link_key, (agents, agents))
        if not self.one_way:
            u = jnp.triu(u) + jnp.triu(u, 1).T
        v = jnp.broadcast_to(jax.random.uniform(agent_key, (1, agents)), (len(ids), agents))
        deaf = _advance(memory.deaf, u[ids], first, self.drop, self.burst)
        mute = _advance(memory.mute, u[:, ids].T, first, self.drop, self.burst)
        offline = _advance(memory.offline, v, first, self.offline, self.offline_length)
        online = ~jnp.take_along_axis(offline, ids[:, None], axis=1)
        conditions = Conditions(
            hears=~deaf & online & ~offline,
            heard=~mute & online & ~offline,
            online=online[:, 0],
            late=jax.random.uniform(lag_key, (agents,))[ids] < self.straggle,
        )
        return conditions, Chains(deaf, mute, offline)


class Chains(NamedTuple):
    """What the chains remember, `[block, agents]` bool each, a row for each agent of the block.

    Attributes:
      deaf: Links over which the row's agent is not reached.
      mute: Links over which it does not reach the other.
      offline: Which agents are offline; every row says the same.
    """

    deaf: jax.Array
    mute: jax.Array
    offline: jax.Array


class Delivery(NamedTuple):
    """The edges that are left, and what is sent all the same.

    Attributes:
      incoming: Edges over which something arrives.
      outgoing: Edges over which the agent reaches its listeners.
      sent: `[block, out_degree]` bool: edges on which it sends.
      replies_arrive: `[block, out_degree]` bool: listeners whose reply comes back.
      replies_reach: `[block, degree]` bool: neighbours that the agent's reply reaches.
      sends_unasked: `[block, degree]` bool: neighbours to which it sends without having heard them.
    """

    incoming: Edges
    outgoing: Edges
    sent: jax.Array
    replies_arrive: jax.Array
    replies_reach: jax.Array
    sends_unasked: jax.Array

    def messages(self) -> tuple[jax.Array, jax.Array]:
        """`[block]` messages that an agent sends to all who listen, and how many of them are lost."""
        sent = self.sent.sum(axis=1, dtype=jnp.int32)
        return sent, sent - self.outgoing.mask.sum(axis=1, dtype=jnp.int32)


class Perfect(NamedTuple):
    """A step in which nothing fails, for the agents of a block.

    Attributes:
      online: `[block]` bool, all True.
      late: `[block]` bool, all False.
    """

    online: jax.Array
    late: jax.Array

    def delivery(self, incoming: Edges, outgoing: Edges) -> Delivery:
        """All edges of a graph."""
        listeners, neighbors = outgoing.mask, incoming.mask
        return Delivery(incoming, outgoing, listeners, listeners, neighbors, neighbors)

    def reweigh(
        self, weights: jax.Array, columns: jax.Array, ids: jax.Array, stochastic: str
    ) -> jax.Array:
        """The rows of the mixing matrix as they are."""
        return weights


class Conditions(NamedTuple):
    """What works in a step, for the agents of a block.

    Attributes:
      hears: `[block, agents]` bool: what that agent sends arrives here.
      heard: `[block, agents]` bool: what is sent from here arrives there.
      online: `[block]` bool.
      late: `[block]` bool: stragglers.
    """

    hears: jax.Array
    heard: jax.Array
    online: jax.Array
    late: jax.Array

    def delivery(self, incoming: Edges, outgoing: Edges) -> Delivery:
        """Cuts the edges of a graph, whose peers are agents.

        Args:
          incoming: Edges as `[block, degree]` tables.
          outgoing: Edges as `[block, out_degree]` tables.
        """
        at = lambda table, edges: jnp.take_along_axis(table, edges.peers, axis=1)
        arrives = incoming.mask & at(self.hears, incoming)
        reaches = outgoing.mask & at(self.heard, outgoing)
        return Delivery(
            incoming._replace(mask=arrives),
            outgoing._replace(mask=reaches),
            sent=outgoing.mask & self.online[:, None],
            # Only who has heard can reply, and replies can be lost as well.
            replies_arrive=reaches & at(self.hears, outgoing),
            replies_reach=arrives & at(self.heard, incoming),
            sends_unasked=incoming.mask & self.online[:, None],
        )

    def reweigh(
        self, weights: jax.Array, columns: jax.Array, ids: jax.Array, stochastic: str
    ) -> jax.Array:
        """The rows of the mixing matrix with the lost weight on the diagonal.

        Args:
          weights: `[block, agents]`, rows of W.
          columns: `[block, agents]`, columns of W.
          ids: `[block]`, whose rows and columns they are.
          stochastic: "row" or "column".
        """
        own = ids[:, None] == jnp.arange(weights.shape[1], dtype=jnp.int32)[None]
        kept = jnp.where(self.hears | own, weights, 0.0)
        if stochastic == "row":
            lost = jnp.where(self.hears | own, 0.0, weights).sum(axis=1)
        else:
            lost = jnp.where(self.heard | own, 0.0, columns).sum(axis=1)
        return kept + jnp.where(own, lost[:, None], 0.0)


def parse_pair(name: str, text: str | None) -> tuple[float, float]:
    """Reads "0.1:20" as (0.1, 20.0); None as (0.0, 1.0).

    Raises:
      ValueError: The text is not two numbers.
    """
    if text is None:
        return 0.0, 1.0
    share, _, length = text.partition(":")
    try:
        pair = float(share), float(length)
    except ValueError:
        pair = math.nan, math.nan
    if not all(map(math.isfinite, pair)):
        raise ValueError(f"{name} is {text!r}; it must be two numbers, as {name}=0.1:20")
    return pair


def _advance(
    bad: jax.Array, u: jax.Array, first: jax.Array, share: float, length: float
) -> jax.Array:
    """One step of a Markov chain that is bad a `share` of the time, for `length` steps on average."""
    leave = 1 / length
    enter = share * leave / (1 - share)
    return u < jnp.where(first, share, jnp.where(bad, 1 - leave, enter))


def _check(name: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value}; it must be {allowed}")
