"""Traffic: what the protocol sends, counted message by message.

A value that was sent once in a round is not paid for twice. A message that is lost on the way was sent.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class Traffic(NamedTuple):
    """What a round sent, as (size, number) pairs so that large totals stay exact.

    Attributes:
      message_bytes: `[exchanges]` int32, the size of one message of each exchange.
      messages: `[exchanges, agents]` int32, how many of them each agent sent.
      lost: `[exchanges, agents]` int32, how many of these did not arrive; None without faults.
    """

    message_bytes: jax.Array
    messages: jax.Array
    lost: jax.Array | None = None

    def bytes_sent(self) -> np.ndarray:
        """`[..., agents]` int64 bytes that each agent sent; leading axes (steps) are kept."""
        sizes = np.asarray(self.message_bytes, np.int64)[..., None]
        return (sizes * np.asarray(self.messages, np.int64)).sum(axis=-2)


class Ledger:
    """Counts what one round sends, and knows what receivers know of it."""

    def __init__(self) -> None:
        self._exchanges: list[tuple[int, jax.Array, jax.Array]] = []
        # The arrays sent so far, with what their receivers know of them. Keeping them alive makes
        # identity mean equality.
        self._sent: dict[int, tuple[jax.Array, jax.Array]] = {}

    def send(
        self,
        tree: PyTree,
        arrives: jax.Array,
        sent: jax.Array | None = None,
        *,
        lead: int = 1,
        size: int | None = None,
        known: PyTree | None = None,
    ) -> None:
        """Counts a message along every edge, unless all of it has been sent before.

        Args:
          tree: What is sent.
          arrives: `[agents, degree]` bool: edges over which it arrives.
          sent: Edges over which it is sent; default: the same.
          lead: Leading axes of `tree` that number the messages.
          size: Bytes of one message; default: those of what is new.
          known: What receivers know of `tree`; default: all of it.
        """
        leaves = jax.tree.leaves(tree)
        received = leaves if known is None else jax.tree.leaves(known)
        new = [x for x in leaves if id(x) not in self._sent]
        for x, xh in zip(leaves, received, strict=True):
            self._sent.setdefault(id(x), (x, xh))
        if new:
            size = message_bytes(new, lead) if size is None else size
            arrived = arrives.sum(axis=1, dtype=jnp.int32)
            messages = arrived if sent is None else sent.sum(axis=1, dtype=jnp.int32)
            self.enter(size, messages, messages - arrived)

    def enter(self, size: int, messages: jax.Array, lost: jax.Array | None = None) -> None:
        """Enters `messages [agents]` of `size` bytes, of which `lost [agents]` do not arrive."""
        self._exchanges.append((size, messages, 0 * messages if lost is None else lost))

    def known(self, tree: PyTree) -> PyTree:
        """What receivers know of values that were sent; other values as they are."""
        return jax.tree.map(lambda x: self._sent.get(id(x), (x, x))[1], tree)

    def traffic(self, agents: int, faulty: bool) -> Traffic:
        """All that was entered.

        Args:
          agents: Number of agents here.
          faulty: Whether messages can be lost.
        """
        none = jnp.zeros((0, agents), jnp.int32)
        sizes, messages, lost = zip(*self._exchanges, strict=True) if self._exchanges else [()] * 3
        stack = lambda counts: jnp.stack(counts) if counts else none
        return Traffic(
            jnp.asarray(sizes, jnp.int32), stack(messages), stack(lost) if faulty else None
        )


def message_bytes(tree: PyTree, lead: int) -> int:
    """Bytes of one message: a leaf's size without its `lead` leading axes."""
    return sum(int(np.prod(x.shape[lead:])) * x.dtype.itemsize for x in jax.tree.leaves(tree))
