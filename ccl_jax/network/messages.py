"""Messages: what agents have sent, and what their receivers know of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ccl_jax.network.channels import Channel

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Message:
    """Values that every agent has sent to all who hear it; made by `Round.send`.

    Attributes:
      own: What the senders have, leaves `[agents, ...]`.
      known: What receivers know of it, likewise; the same where the channel is exact.
      channel: What it went through; None for a pair of messages that went through different ones.
      name: What it was sent as; None for what is derived from a message.
      sources: Names of the messages that it is made of.
    """

    own: PyTree
    known: PyTree
    channel: Channel | None = dataclasses.field(metadata={"static": True})
    name: str | None = dataclasses.field(metadata={"static": True})
    sources: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def map(self, fn: Callable[[PyTree], PyTree]) -> "Message":
        """What sender and receivers each make of the message: nothing more is sent.

        Args:
          fn: A function of the stacked values, as push-sum's division by the weight that came along.
        """
        return dataclasses.replace(self, own=fn(self.own), known=fn(self.known), name=None)

    def join(self, other: "Message") -> "Message":
        """The pair of two messages."""
        own, known = (self.own, other.own), (self.known, other.known)
        channel = self.channel if self.channel == other.channel else None
        return Message(own, known, channel, None, self.sources + other.sources)
