"""Channels: what receivers know of what is sent to them.

A channel is what values go through on their way. It may keep a memory for every name under which
something is sent; the memory stands for what all receivers know, so it is one for each sender. Where
links lose messages, receivers of one sender know different things: that is no matter of values but of
edges (`ccl_jax.network.faults`).
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ccl_jax import trees
from ccl_jax.network import compression
from ccl_jax.network.compression import Compressor
from ccl_jax.network.traffic import message_bytes

PyTree = Any


class Moment(NamedTuple):
    """What a channel has to know of the step.

    Attributes:
      first: Scalar bool, the first step of a run: all agents have one model, which everyone knows.
      active: Scalar bool, False where agents work alone and nothing is sent.
      late: `[agents]` bool, whose messages lag behind.
      keys: `[agents]` random keys, one for each agent's message in this exchange; None in a network
        without noise.
    """

    first: jax.Array
    active: jax.Array
    late: jax.Array
    keys: jax.Array | None = None


class Channel(Protocol):
    """What values go through on their way to their receivers."""

    def start(self, values: PyTree) -> PyTree:
        """A memory for values of these shapes, before anything was sent."""

    def send(
        self, values: PyTree, memory: PyTree, moment: Moment, alike: bool = True
    ) -> tuple[PyTree, PyTree]:
        """What receivers then know of `values`, and the new memory.

        Args:
          values: What is sent.
          memory: That of the name under which it is sent.
          moment: The step.
          alike: Whether all agents send the same in the first step.
        """

    def average(
        self, weighted: PyTree, own: PyTree, known: PyTree, own_weights: jax.Array
    ) -> PyTree:
        """The gossip average of an agent that has its own value exactly.

        Args:
          weighted: W applied to what is known.
          own: What agents have.
          known: What is known of it.
          own_weights: `[agents]` w_ii.
        """

    def message_bytes(self, values: PyTree, lead: int = 1) -> int:
        """Bytes of one message; `lead` axes of `values` number the messages."""


@dataclasses.dataclass(frozen=True)
class Exact:
    """Everything arrives as it was sent."""

    def start(self, values: PyTree) -> PyTree:
        return ()

    def send(
        self, values: PyTree, memory: PyTree, moment: Moment, alike: bool = True
    ) -> tuple[PyTree, PyTree]:
        return values, memory

    def average(
        self, weighted: PyTree, own: PyTree, known: PyTree, own_weights: jax.Array
    ) -> PyTree:
        return weighted

    def message_bytes(self, values: PyTree, lead: int = 1) -> int:
        return message_bytes(values, lead)


@dataclasses.dataclass(frozen=True)
class Lagging(Exact):
    """Stragglers send what they had some exchanges ago; the memory is what was sent since.

    Attributes:
      delay: How many exchanges ago, at least 1.
    """

    delay: int

    def start(self, values: PyTree) -> PyTree:
        return trees.per_edge(values, self.delay)

    def send(
        self, values: PyTree, memory: PyTree, moment: Moment, alike: bool = True
    ) -> tuple[PyTree, PyTree]:
        # All agents start alike, so before the start everyone had what it has now.
        always = jax.tree.map(lambda x: jnp.repeat(x[:, None], self.delay, axis=1), values)
        past = trees.where(moment.first, always, memory)
        later = jax.tree.map(
            lambda p, x: jnp.concatenate([p[:, 1:], x[:, None]], axis=1), past, values
        )
        old = jax.tree.map(lambda p: p[:, 0], past)
        known = trees.where_agent(moment.late, old, values)
        return known, trees.where(moment.active, later, past)

    def average(
        self, weighted: PyTree, own: PyTree, known: PyTree, own_weights: jax.Array
    ) -> PyTree:
        return _with_own_exactly(weighted, own, known, own_weights)


@dataclasses.dataclass(frozen=True)
class Noisy(Exact):
    """Senders add Gaussian noise to every number of a message, once: all receivers hear the same.

    That is the broadcast of local differential privacy (Huang, Mitra & Vaidya, ICDCN 2015,
    arXiv:1401.2596; there with Laplace noise). What is sent again, also by a straggler, has new noise.

    Attributes:
      scale: Standard deviation, in the units of what is sent.
      before: What the values go through first.
    """

    scale: float
    before: Channel = Exact()

    def start(self, values: PyTree) -> PyTree:
        return self.before.start(values)

    def send(
        self, values: PyTree, memory: PyTree, moment: Moment, alike: bool = True
    ) -> tuple[PyTree, PyTree]:
        values, memory = self.before.send(values, memory, moment, alike)
        # Where nothing is sent, what agents know of themselves stays as it is, to the bit.
        scale = jnp.where(moment.active, self.scale, 0.0)
        leaves, structure = jax.tree.flatten(values)

        def add(number: int, x: jax.Array) -> jax.Array:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(moment.keys, number)
            draw = lambda key: jax.random.normal(key, x.shape[1:], x.dtype)
            return x + scale.astype(x.dtype) * jax.vmap(draw)(keys)

        return jax.tree.unflatten(structure, [add(*leaf) for leaf in enumerate(leaves)]), memory

    def average(
        self, weighted: PyTree, own: PyTree, known: PyTree, own_weights: jax.Array
    ) -> PyTree:
        return _with_own_exactly(weighted, own, known, own_weights)


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Compressed differences to a copy xh that receivers keep (CHOCO-SGD, arXiv:1902.00340).

    The memory is xh. An average is x + (W - I) xh, which keeps the mean. All agents start from one
    model, and so can the copies. Many published methods start the copies at 0 and say nothing before the
    first local step, so that the whole model has to be sent, entry by entry.

    Noise is added before the compression, which then gives away no more than the noisy values do; an
    agent's own value moves by what is known of it, which has the noise, so that the mean is kept.

    Attributes:
      compressor: C, of the differences.
      before: What the values go through first.
      from_zero: Whether the copies start at 0 and nothing is said in the first step; else they start at
        what is then sent, where that is alike.
    """

    compressor: Compressor
    before: Channel = Exact()
    from_zero: bool = False

    def start(self, values: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, values), self.before.start(values)

    def send(
        self, values: PyTree, memory: PyTree, moment: Moment, alike: bool = True
    ) -> tuple[PyTree, PyTree]:
        known = memory[0]
        if alike and not self.from_zero:
            # The common start, which nobody has to be told.
            known = trees.where(moment.first, values, known)
        values, before = self.before.send(values, memory[1], moment, alike)
        news = self.compressor(jax.tree.map(jnp.subtract, values, known), lead=1)
        heard = jax.tree.map(jnp.add, known, news)
        if self.from_zero:
            heard = trees.where(moment.first, known, heard)
        return heard, (trees.where(moment.active, heard, known), before)

    def average(
        self, weighted: PyTree, own: PyTree, known: PyTree, own_weights: jax.Array
    ) -> PyTree:
        return jax.tree.map(lambda x, w, h: x + (w - h), own, weighted, known)

    def message_bytes(self, values: PyTree, lead: int = 1) -> int:
        return self.compressor.message_bytes(values, lead)


@dataclasses.dataclass(frozen=True)
class Feedback(Exact):
    """Compressed replies: what one leaves out is added to the next (arXiv:1901.09847).

    The memory is what was left out on each edge. Values are `[agents, degree, ...]`.

    Attributes:
      compressor: Of the replies.
      before: What the values go through first, which remembers nothing.
    """

    compressor: Compressor
    before: Channel = Exact()

    def start(self, values: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, values)

    def send(
        self, values: PyTree, memory: PyTree, moment: Moment, alike: bool = True
    ) -> tuple[PyTree, PyTree]:
        values, _ = self.before.send(values, (), moment, alike)
        sent, error = compression.feedback(self.compressor, values, memory, lead=2)
        # What is not sent is not forgotten either.
        return sent, trees.where(moment.active, error, memory)

    def message_bytes(self, values: PyTree, lead: int = 1) -> int:
        return self.compressor.message_bytes(values, lead)


def _with_own_exactly(
    weighted: PyTree, own: PyTree, known: PyTree, own_weights: jax.Array
) -> PyTree:
    """The average in which agents use their own values as they are, not as others know them."""
    weight = lambda x: trees.per_agent(own_weights.astype(x.dtype), x)
    return jax.tree.map(lambda m, x, s: m + weight(x) * (x - s), weighted, own, known)
