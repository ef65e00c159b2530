"""AdaGossip (AdaG-SGD): a gossip rate for every coordinate, from the second moment of gossip.

Aketi, Hashemi & Roy, "AdaGossip: Adaptive Consensus Step-size for Decentralized Deep Learning with
Communication Compression", arXiv:2404.05919. As its published code runs, coordinate by coordinate, with
the copies xh that neighbours keep of compressed models, and t = 1 for the first exchange:

    h = [(W - I) xh];   s <- b2 s + (1 - b2) h^2;   r = h min(1, gamma / (sqrt(s / (1 - b2^t)) + eps))
    xt = x + r;   u = g(xt) + lam xt;   d = momentum(u), local;   x <- xt - eta d

With quasi-global momentum in its displacement form (`quasi_global`), m <- m - r / eta_prev before the
gradient. Coordinates move at rates of their own, so the mean of the models is not kept. The published
start is xh = 0 (compression_start="zero").
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base


class AdaGossipState(NamedTuple):
    """State of AdaGossip.

    Attributes:
      second: s, like params.
      exchanges: t, scalar int32, exchanges so far but for the one of equal models; -1 before that.
      momentum: m, like params.
      lr: eta_prev, scalar; 0 before the first step.
    """

    second: base.PyTree
    exchanges: jax.Array
    momentum: base.PyTree
    lr: jax.Array


@base.register(
    "adagossip",
    summary="DSGD with a gossip rate for every coordinate, for compressed messages",
    reference="Aketi et al., arXiv:2404.05919",
    capabilities=base.GOSSIP,
)
def adagossip(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
    b2: float = 0.999,
    eps: float = 1e-8,
    quasi_global_momentum: bool = False,
) -> base.Algorithm:
    """AdaGossip; other arguments as `dsgd.dsgd`.

    Args:
      gossip_rate: gamma in (0, 1], in the units of the models: about how far gossip moves a coordinate.
      b2: Decay of the second moment.
      eps: Added to its root.
      quasi_global_momentum: Quasi-global momentum, displacement form, in place of the local one.
    """

    heavy_ball = base.heavy_ball(momentum, nesterov, weight_decay)

    def init(params, talk):
        zeros = optax.tree.zeros_like
        return AdaGossipState(zeros(params), jnp.int32(-1), zeros(params), base.no_rate(params))

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        _, h = base.gossip(talk, message, 1.0)
        t = state.exchanges + talk.active.astype(jnp.int32)
        moved = talk.active & (t > 0)
        squares = jax.tree.map(jnp.square, h)
        renewed = trees.moving_average(b2, state.second, squares)
        second = trees.where(moved, renewed, state.second)
        gamma = base.rate_at(gossip_rate, talk)
        if talk.exact is not None:
            # Every coordinate then moves all the way.
            gamma = jnp.where(talk.exact, jnp.inf, gamma)
        # 1 - b2^t, without rounding b2^t to the digits that 1 has.
        count = jnp.maximum(t, 1).astype(trees.sum_type(params))
        correction = -jnp.expm1(count * (math.log(b2) if b2 else -math.inf))

        def scale(h, s):
            root = jnp.sqrt(s / correction.astype(s.dtype)) + eps
            return h * jnp.minimum(1.0, jnp.asarray(gamma, h.dtype) / root)

        r = jax.tree.map(scale, h, second)
        m = state.momentum
        if quasi_global_momentum:
            m = trees.axpy(-1 / base.safe_previous(state.lr, lr), r, m)
        return optax.tree.add(params, r), AdaGossipState(second, t, m, lr), message

    def update(grads, eval_params, state, talk, lr):
        d, m = heavy_ball(grads, eval_params, state.momentum)
        return trees.axpy(-lr, d, eval_params), state._replace(momentum=m, lr=lr)

    return base.Algorithm(init, communicate, update)
