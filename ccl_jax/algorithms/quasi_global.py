"""Quasi-global momentum: QG-DSGDm and QG-DSGDm-N, in both published forms.

Lin et al., "Quasi-Global Momentum: Accelerating Decentralized Deep Learning on Heterogeneous Data",
ICML 2021, arXiv:2102.04761.

Local momentum follows local data. Here momentum follows how the *mixed* model moved, which carries
the neighbours' movement too, at no extra communication. With r_i = gamma [(W - I) x]_i the move made
by gossip and xt_i = x_i + r_i the mixed point:

  displacement (what the authors of CCL run, the default):
    m_i <- m_i - r_i / eta_prev;   u_i = g_i(xt_i) + lam xt_i;   m_i <- beta m_i + u_i
    d_i = u_i + beta m_i (Nesterov) or m_i;   x_i <- xt_i - eta d_i

  moving average (the paper's, "ema"), with mh the quasi-global momentum:
    mh_i <- (1 - f) mh_i + f (xt_i,prev - xt_i) / eta_prev;   u_i as above;   m_i = beta mh_i + u_i
    d_i = u_i + beta m_i or m_i;   x_i <- xt_i - eta d_i

The published code of Lin et al. fixes f = 0.1 whatever beta is; others use f = 1 - beta.
"""

from typing import NamedTuple

import jax
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base

_REFERENCE = "Lin et al., ICML 2021, arXiv:2102.04761"


class DisplacementState(NamedTuple):
    """State of the displacement form.

    Attributes:
      momentum: m, like params.
      lr: eta_prev, scalar; 0 before the first step.
    """

    momentum: base.PyTree
    lr: jax.Array


@base.register(
    "qg-dsgdm",
    summary="quasi-global heavy-ball momentum, displacement form",
    reference=_REFERENCE + "; form of arXiv:2310.15890",
    capabilities=base.GOSSIP,
    nesterov=False,
)
@base.register(
    "qg-dsgdm-n",
    summary="quasi-global Nesterov momentum, displacement form (used by CCL)",
    reference=_REFERENCE + "; form of arXiv:2310.15890",
    capabilities=base.GOSSIP,
    nesterov=True,
)
def displacement(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
) -> base.Algorithm:
    """Quasi-global momentum as heavy ball on the total displacement.

    Args:
      momentum: beta in [0, 1).
      nesterov: Nesterov's form of it.
      weight_decay: lam, added to the gradient.
      gossip_rate: gamma in (0, 1].
    """

    heavy_ball = base.heavy_ball(momentum, nesterov, weight_decay)

    def init(params, talk):
        return DisplacementState(optax.tree.zeros_like(params), base.no_rate(params))

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        mixed, r = base.gossip(talk, message, gossip_rate)
        m = trees.axpy(-1 / base.safe_previous(state.lr, lr), r, state.momentum)
        return mixed, DisplacementState(m, lr), message

    def update(grads, eval_params, state, talk, lr):
        d, m = heavy_ball(grads, eval_params, state.momentum)
        return trees.axpy(-lr, d, eval_params), DisplacementState(m, lr)

    return base.Algorithm(init, communicate, update)


class EmaState(NamedTuple):
    """State of the moving average.

    Attributes:
      momentum: mh, like params.
      previous: xt of the step before, like params.
      lr: eta_prev, scalar; 0 before the first step.
    """

    momentum: base.PyTree
    previous: base.PyTree
    lr: jax.Array


@base.register(
    "qg-dsgdm-ema",
    summary="quasi-global heavy-ball momentum, moving-average form",
    reference=_REFERENCE,
    capabilities=base.GOSSIP,
    nesterov=False,
)
@base.register(
    "qg-dsgdm-n-ema",
    summary="quasi-global Nesterov momentum, moving-average form",
    reference=_REFERENCE,
    capabilities=base.GOSSIP,
    nesterov=True,
)
def ema(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
    ema_factor: float = 0.1,
) -> base.Algorithm:
    """Quasi-global momentum as a moving average of displacements; other arguments as `displacement`.

    Args:
      ema_factor: f in (0, 1].
    """

    heavy_ball = base.heavy_ball(momentum, nesterov, weight_decay)

    def init(params, talk):
        return EmaState(optax.tree.zeros_like(params), trees.copy(params), base.no_rate(params))

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        mixed, _ = base.gossip(talk, message, gossip_rate)
        moved = optax.tree.sub(state.previous, mixed)
        kept = jax.tree.map(lambda h: (1 - ema_factor) * h, state.momentum)
        h = trees.axpy(ema_factor / base.safe_previous(state.lr, lr), moved, kept)
        return mixed, EmaState(h, mixed, lr), message

    def update(grads, eval_params, state, talk, lr):
        d, _ = heavy_ball(grads, eval_params, state.momentum)
        return trees.axpy(-lr, d, eval_params), state._replace(lr=lr)

    return base.Algorithm(init, communicate, update)
