"""Traffic: what the protocol sends, counted message by message.

A message is paid for when it is sent, once, whatever is then done with it. One that is lost on the way
was sent.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class Traffic(NamedTuple):
    """What a step sent, as (size, number) pairs so that large totals stay exact.

    Attributes:
      message_bytes: `[agents, exchanges]` int32, the size of one message of each exchange.
      messages: `[agents, exchanges]` int32, how many of them each agent sent.
      lost: `[agents, exchanges]` int32, how many of these did not arrive; None without faults.
    """

    message_bytes: jax.Array
    messages: jax.Array
    lost: jax.Array | None = None

    def bytes_sent(self) -> np.ndarray:
        """`[..., agents]` int64 bytes that each agent sent; leading axes (steps) are kept."""
        sizes = np.asarray(self.message_bytes, np.int64)
        return (sizes * np.asarray(self.messages, np.int64)).sum(axis=-1)


class Ledger:
    """Counts what one step sends.

    Args:
      agents: Number of agents here.
      faulty: Whether messages can be lost.
    """

    def __init__(self, agents: int, faulty: bool) -> None:
        self._agents = agents
        self._faulty = faulty
        self._exchanges: list[tuple[int, jax.Array, jax.Array]] = []

    def enter(self, size: int, messages: jax.Array, lost: jax.Array | None = None) -> None:
        """Enters `messages [agents]` of `size` bytes, of which `lost [agents]` do not arrive."""
        self._exchanges.append((size, messages, 0 * messages if lost is None else lost))

    def traffic(self) -> Traffic:
        """All that was entered."""
        sizes = [jnp.full(self._agents, size, jnp.int32) for size, _, _ in self._exchanges]
        messages = [messages for _, messages, _ in self._exchanges]
        lost = [lost for _, _, lost in self._exchanges]
        none = jnp.zeros((self._agents, 0), jnp.int32)
        stack = lambda columns: jnp.stack(columns, axis=1) if columns else none
        return Traffic(stack(sizes), stack(messages), stack(lost) if self._faulty else None)


def all_reduce_bytes(size: int, agents: int) -> int:
    """Bytes that an agent sends in a ring all-reduce of `size` bytes."""
    return 2 * size * (agents - 1) // agents


def message_bytes(tree: PyTree, lead: int) -> int:
    """Bytes of one message: a leaf's size without its `lead` leading axes."""
    return sum(int(np.prod(x.shape[lead:])) * x.dtype.itemsize for x in jax.tree.leaves(tree))
