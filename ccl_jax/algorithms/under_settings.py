"""Which methods stay what they are when agents talk rarely, more than once a step, or compressed."""

from ccl_jax.algorithms import base
from ccl_jax.network import Network

# No gossip: they take averages over all agents, relay sums along a tree, or do not talk at all.
_NO_GOSSIP = ("all-reduce", "fedavg", "isolated", "relaysgd")
# The published method talks in every so many steps, or counts whatever has arrived.
_RARELY = ("fedavg", "relaysgd", "isolated", "comp-ngc", "comp-cga")


def check(network: Network, method: base.Method) -> None:
    """Makes sure that a method stays what it is with the settings of the network.

    Args:
      network: How agents talk.
      method: The method.

    Raises:
      ValueError: It does not; the message says why and what to do.
    """
    name = method.name
    recursion = base.static in method.checks and name not in _RARELY
    if network.local_steps > 1 and (recursion or name == "all-reduce"):
        raise ValueError(
            f"local_steps is {network.local_steps}, and {name} needs an exchange in every step; "
            "leave it out, or take another method"
        )
    if network.gossip_steps > 1 and name in _NO_GOSSIP:
        raise ValueError(
            f"gossip_steps is {network.gossip_steps}, and {name} does not gossip; leave it out"
        )
    if network.compressor is not None and name in _NO_GOSSIP:
        raise ValueError(
            f"compression is for what agents mix, and {name} does not gossip; leave it out"
        )
    if network.compressor is not None and name in ("ngc", "cga"):
        raise ValueError(
            f"compression is for models, and {name} sends gradients, too; take comp-{name} without it"
        )
