"""Momentum tracking: momentum that is free of the bias of local data.

Takezawa et al., "Momentum Tracking: Momentum Acceleration for Decentralized Deep Learning on
Heterogeneous Data", TMLR 2023, arXiv:2209.15505.

    z <- beta z + g(x) + lam x;   x <- W x - eta (z - k) with the old k
    k <- W (k - z) + z with the new z

Published start ("global"): z = k = (g_0 - mean of all g_0) / (1 - beta), the mean an exact
all-reduce. The port by Aketi starts from zero ("zero"): nothing but gossip is needed. The gradient is
at the unmixed x. Model and tracker travel together: twice the bytes of DSGD.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, bounds, graph_checks


class MomentumTrackingState(NamedTuple):
    """State of momentum tracking.

    Attributes:
      momentum: z, like params.
      offset: k - z, like params: sent; after `communicate`, k.
      mixed: W x, where the step starts.
      step: t, scalar int32.
    """

    momentum: base.PyTree
    offset: base.PyTree
    mixed: base.PyTree
    step: jax.Array


def _lossless(hyperparameters: dict[str, Any]) -> str:
    return bounds.EXACT if hyperparameters["start"] == "global" else ""


@base.register(
    "momentum-tracking",
    summary="tracks the momentum of all agents",
    reference="Takezawa et al., TMLR 2023, arXiv:2209.15505",
    capabilities=dataclasses.replace(base.TRACKING_UNMIXED, lossless=_lossless),
    **graph_checks.DOUBLY_STOCHASTIC,
)
def momentum_tracking(
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-3,
    gossip_rate: base.GossipRate = 1.0,
    start: str = "zero",
) -> base.Algorithm:
    """Momentum tracking.

    Args:
      momentum: beta in [0, 1).
      weight_decay: lam, added to the gradient; the published code fixes 1e-3.
      gossip_rate: gamma in (0, 1].
      start: "zero", or "global" with one all-reduce at the first step.

    Raises:
      ValueError: Another start.
    """
    all_reduce = base.choice("start", start, ("zero", "global")) == "global"

    def init(params, talk):
        zeros = optax.tree.zeros_like
        return MomentumTrackingState(zeros(params), zeros(params), trees.copy(params), jnp.int32(0))

    def communicate(params, state, talk, lr):
        message = talk.send("params and offset", (params, state.offset))
        (mixed, offset), _ = base.gossip(talk, message, gossip_rate)
        k = optax.tree.add(offset, state.momentum)
        state = state._replace(mixed=mixed, offset=k)
        return params, state, message.map(lambda sent: sent[0])

    def update(grads, eval_params, state, talk, lr):
        z, k = state.momentum, state.offset
        if all_reduce:
            first = state.step == 0
            mean = talk.average(grads, when=first)
            scale = jnp.where(first, 1 / (1 - momentum), 0.0)
            z, k = (trees.axpy(scale, optax.tree.sub(grads, mean), tree) for tree in (z, k))
        u = trees.axpy(weight_decay, eval_params, grads)
        z = trees.axpy(momentum, z, u)
        params = trees.axpy(-lr, optax.tree.sub(z, k), state.mixed)
        return params, MomentumTrackingState(z, optax.tree.sub(k, z), state.mixed, state.step + 1)

    return base.Algorithm(init, communicate, update)
