"""The network: all that agents can say to each other, what it costs, and what goes wrong with it."""

from ccl_jax.network.network import Network, Round, where
from ccl_jax.network.traffic import Traffic

__all__ = ["Network", "Round", "Traffic", "where"]
