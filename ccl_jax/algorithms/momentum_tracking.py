"""Momentum tracking: momentum that is free of the bias of local data.

Takezawa et al., "Momentum Tracking: Momentum Acceleration for Decentralized Deep Learning on
Heterogeneous Data", TMLR 2023, arXiv:2209.15505.

    z <- beta z + g(x) + lam x;   x <- W x - eta (z - k) with the old k
    k <- W (k - z) + z with the new z

Published start ("global"): z = k = (g_0 - mean of all g_0) / (1 - beta), the mean an exact
all-reduce. The port by Aketi starts from zero ("zero"): nothing but gossip is needed. The gradient is
at the unmixed x. Model and tracker travel together: twice the bytes of DSGD.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax.algorithms import base


class MomentumTrackingState(NamedTuple):
    """Attributes:
    momentum: z, like params.
    offset: k - z, like params: sent; after `communicate`, k.
    mixed: W x, where the step starts.
    step: t, scalar int32.
    """

    momentum: base.PyTree
    offset: base.PyTree
    mixed: base.PyTree
    step: jax.Array


@base.register(
    "momentum-tracking",
    summary="tracks the momentum of all agents",
    reference="Takezawa et al., TMLR 2023, arXiv:2209.15505",
    graph="doubly stochastic",
    check=(base.doubly_stochastic,),
)
def momentum_tracking(
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-3,
    gossip_rate: float = 1.0,
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

    def init(params, network):
        return MomentumTrackingState(
            base.zeros(params), base.zeros(params), base.copy(params), jnp.int32(0)
        )

    def communicate(params, state, network, lr):
        (mixed, offset), _ = base.gossip(network, (params, state.offset), gossip_rate)
        k = jax.tree.map(jnp.add, offset, state.momentum)
        return params, state._replace(mixed=mixed, offset=k)

    def update(grads, eval_params, state, network, lr):
        z, k = state.momentum, state.offset
        if all_reduce:
            first = state.step == 0
            mean = network.average(grads, when=first)
            scale = jnp.where(first, 1 / (1 - momentum), 0.0)
            z, k = (base.axpy(scale, base.subtract(grads, mean), tree) for tree in (z, k))
        u = base.axpy(weight_decay, eval_params, grads)
        z = base.axpy(momentum, z, u)
        params = base.axpy(-lr, base.subtract(z, k), state.mixed)
        return params, MomentumTrackingState(z, base.subtract(k, z), state.mixed, state.step + 1)

    return base.Algorithm(init, communicate, update)
