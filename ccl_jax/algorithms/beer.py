"""BEER and MoTEF: gradient tracking in which models and trackers travel compressed.

BEER: Zhao et al., "BEER: Fast O(1/T) Rate for Decentralized Nonconvex Optimization with Communication
Compression", NeurIPS 2022, arXiv:2201.13320. MoTEF: Islamov, Gao & Stich, "Near Optimal Decentralized
Optimization with Compression and Momentum Tracking", arXiv:2405.20114.

With the copies xh and vh that neighbours keep (`ccl_jax.network.channels.Compressed`) and
u_t = g(x_t) + lam x_t at the unmixed x_t:

    xh_t = xh_{t-1} + C(x_t - xh_{t-1});       m_t = beta m_{t-1} + (1 - beta) u_t   (m_0 = u_0)
    v_t = v_{t-1} + gamma [(W - I) vh_{t-1}] + m_t - m_{t-1}   (v_0 = m_0)
    vh_t = vh_{t-1} + C(v_t - vh_{t-1});       x_{t+1} = x_t + gamma [(W - I) xh_t] - eta v_t

BEER has beta = 0; the lambda of MoTEF is 1 - beta. The published loops enter this circle elsewhere: they
use the copies, then renew them. The network compresses (`compression`); without that BEER is gradient
tracking. Twice the bytes of DSGD. The published start is xh_0 = vh_0 = 0 (compression_start="zero").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, graph_checks


class CompressedTrackingState(NamedTuple):
    """State of BEER and MoTEF.

    Attributes:
      tracker: v + gamma (W - I) vh, like params.
      momentum: m, like params.
      mixed: x + gamma (W - I) xh, where the step starts.
      step: t, scalar int32.
    """

    tracker: base.PyTree
    momentum: base.PyTree
    mixed: base.PyTree
    step: jax.Array


@base.register(
    "beer",
    summary="gradient tracking with compressed models and trackers",
    reference="Zhao et al., NeurIPS 2022, arXiv:2201.13320",
    capabilities=base.TRACKING_UNMIXED,
    momentum=0.0,
    start="gradient",
    **graph_checks.DOUBLY_STOCHASTIC,
)
@base.register(
    "motef",
    summary="BEER with the moving average of gradients in the tracker",
    reference="Islamov et al., arXiv:2405.20114",
    capabilities=base.TRACKING_UNMIXED,
    **graph_checks.DOUBLY_STOCHASTIC,
)
def compressed_tracking(
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
    start: str = "gradient",
) -> base.Algorithm:
    """MoTEF, and BEER with momentum 0.

    Args:
      momentum: beta in [0, 1), 1 - lambda of the paper.
      weight_decay: lam, added to the gradient.
      gossip_rate: gamma in (0, 1]; compression needs a small one.
      start: m_0, "gradient" or "zero". With "zero", which the published experiments have, the mean of v
        misses a part of the mean gradient for good, and the agents do not reach the optimum.

    Raises:
      ValueError: Another start.
    """
    from_zero = base.choice("start", start, ("gradient", "zero")) == "zero"

    def init(params, talk):
        zeros = optax.tree.zeros_like
        return CompressedTrackingState(
            zeros(params), zeros(params), trees.copy(params), jnp.int32(0)
        )

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        mixed, _ = base.gossip(talk, message, gossip_rate)
        return params, state._replace(mixed=mixed), message

    def update(grads, eval_params, state, talk, lr):
        first = state.step == 0
        u = trees.axpy(weight_decay, eval_params, grads)
        average = trees.moving_average(momentum, state.momentum, u)
        m = trees.where(first, optax.tree.zeros_like(u) if from_zero else u, average)
        v = jax.tree.map(lambda v, new, old: v + new - old, state.tracker, m, state.momentum)
        v = trees.where(first, u, v)
        tracker, _ = base.gossip(talk, talk.send("tracker", v, alike=False), gossip_rate)
        params = trees.axpy(-lr, v, state.mixed)
        return params, CompressedTrackingState(tracker, m, state.mixed, state.step + 1)

    return base.Algorithm(init, communicate, update)
