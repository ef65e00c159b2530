"""Whether a method stays what it is on a network and a platform, by what it has declared."""

import numpy as np

from ccl_jax.algorithms import base, graph_checks
from ccl_jax.network import Network


def check(method: base.Method, network: Network, **hyperparameters: object) -> None:
    """Makes sure that a method stays what it is when agents talk rarely, often, compressed or lossily.

    Args:
      method: The method.
      network: How agents talk.
      **hyperparameters: Those that were given.

    Raises:
      ValueError: It does not; the message says why and what to do.
    """
    wanted = {
        "local_steps": network.local_steps > 1,
        "gossip_steps": network.gossip_steps > 1,
        "compression": network.compressor is not None,
        "faults": network.faults.any,
        "message_noise": network.message_noise > 0,
        "merge_at": network.average_from is not None,
    }
    asked = [setting for setting, on in wanted.items() if on]
    if not asked:
        return
    name, bears = method.name, method.capabilities
    if bears is None:
        raise ValueError(
            f"{name} declares nothing about {', '.join(asked)}: leave it out, or give `capabilities=` "
            "where the method is registered"
        )
    if wanted["local_steps"] and not bears.rarely:
        raise ValueError(
            f"local_steps is {network.local_steps}, and {name} needs an exchange in every step; "
            "leave it out, or take another method"
        )
    if wanted["local_steps"] and bears.by_chance and network.coins is None:
        raise ValueError(
            f"local_steps is {network.local_steps}, and {name} throws a coin for every step; give the "
            "network `coins=SEED`, or take led for regular exchanges"
        )
    if wanted["gossip_steps"] and bears.how != "gossip":
        raise ValueError(
            f"gossip_steps is {network.gossip_steps}, and {name} does not gossip; leave it out"
        )
    if wanted["compression"] and bears.how != "gossip":
        raise ValueError(
            f"compression is for what agents mix, and {name} does not gossip; leave it out"
        )
    if wanted["compression"] and bears.uncompressed:
        raise ValueError(f"{name} {bears.uncompressed}, or leave out compression")
    if wanted["message_noise"] and bears.how == "average":
        raise ValueError(
            f"message_noise is for what neighbours say to each other, and {name} takes exact averages "
            "over all agents; leave it out"
        )
    if wanted["message_noise"] and bears.noiseless:
        raise ValueError(
            f"{name} {bears.noiseless}; leave out message_noise, or take another method"
        )
    if wanted["message_noise"] and bears.adds_up:
        raise ValueError(
            f"{name} adds up what it hears from step to step, and noise would add up with it without "
            "bound (arXiv:2210.00551); leave out message_noise, or take a method without trackers, "
            "corrections and push-sum, as dsgdm-n"
        )
    if wanted["merge_at"] and bears.how != "gossip":
        raise ValueError(
            f"merge_at is for what agents mix, and {name} does not gossip; leave it out"
        )
    if wanted["merge_at"] and graph_checks.static in method.checks:
        raise ValueError(
            f"merge_at changes who averages with whom, and {name} is made for a graph that does not "
            "change; give --final_merge, which averages after the last step, or take another method"
        )
    if wanted["faults"]:
        _check_faults(method, bears, network, hyperparameters)


def check_platform(method: base.Method, platform: str) -> None:
    """Makes sure that a method stays what it is where it runs.

    Args:
      method: The method.
      platform: As `jax.default_backend` says it: "cpu", "gpu" or "tpu".

    Raises:
      ValueError: It does not; the message says why and what to do.
    """
    if platform == "tpu" and method.capabilities and method.capabilities.float64:
        raise ValueError(
            f"{method.name} needs float64, which a TPU does not have, and what stands in for it there "
            "has not been checked; run it on a CPU or a GPU, or take another method (ngc is near)"
        )


def check_mixed_statistics(method: base.Method) -> None:
    """Makes sure that a method mixes, where statistics of batch norm are to be mixed.

    Raises:
      ValueError: It does not, and talks otherwise or not at all.
    """
    if method.capabilities and method.capabilities.how != "gossip":
        raise ValueError(
            f"gossip_batch_stats mixes with neighbours, and {method.name} does not gossip; leave it out"
        )


def _check_faults(
    method: base.Method,
    bears: base.Capabilities,
    network: Network,
    hyperparameters: dict[str, object],
) -> None:
    settings = method.hyperparameters | method.fixed | hyperparameters
    why = bears.lossless(settings) if callable(bears.lossless) else bears.lossless
    both_ways = (graph_checks.undirected, graph_checks.tree, graph_checks.doubly_stochastic)
    weights = network.topology.weights
    if network.faults.straggle and (bears.keeps_sums or why):
        broken = (
            "keeps sums over all agents" if bears.keeps_sums else "needs the messages of its step"
        )
        _refuse(method, f"{broken}, which old messages break; leave out straggle")
    if why and (network.faults.drop or network.faults.offline):
        _refuse(method, why)
    if network.faults.one_way and any(check in method.checks for check in both_ways):
        _refuse(method, "needs links that fail in both directions; leave out drop_one_way")
    if graph_checks.doubly_stochastic in method.checks and not np.allclose(
        weights, weights.transpose(0, 2, 1)
    ):
        _refuse(method, "keeps its sums only with symmetric weights; take another graph")


def _refuse(method: base.Method, why: str) -> None:
    raise ValueError(f"{method.name} {why}; or take another method for a network with faults")
