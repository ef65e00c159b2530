"""The network: all that agents can say to each other, what it costs, and what goes wrong with it."""

from ccl_jax.network.faults import Faults
from ccl_jax.network.memory import Memory
from ccl_jax.network.messages import Message
from ccl_jax.network.network import Network
from ccl_jax.network.round import Round
from ccl_jax.network.traffic import Traffic

__all__ = ["Faults", "Memory", "Message", "Network", "Round", "Traffic"]
