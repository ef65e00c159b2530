"""Decentralized SGD with local momentum: DSGD, DSGDm, DSGDm-N.

Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017,
arXiv:1705.09056. Momentum forms as in Lin et al., arXiv:2102.04761, and Assran et al.,
arXiv:1811.10792.

    xt_i = x_i + gamma [(W - I) x]_i
    u_i  = g_i(xt_i) + lam xt_i;   m_i <- beta m_i + u_i;   d_i = u_i + beta m_i (Nesterov) or m_i
    x_i <- xt_i - eta d_i

The gradient is taken at the mixed point, as the authors of CCL do. With gamma = 1 this is "adapt,
then combine" (local step, then mix) seen half a step later, so both are the same recursion. With
gradient_at="unmixed" it is "combine, then adapt": the gradient is at x_i, the step starts from xt_i,
and the exchange can overlap with the gradient. Momentum stays local.
"""

from typing import NamedTuple

import optax

from ccl_jax import trees
from ccl_jax.algorithms import base


class DsgdState(NamedTuple):
    """State of decentralized SGD.

    Attributes:
      local: State of the local optimizer, one for each agent.
      mixed: xt, where the step starts; only kept when the gradient is taken elsewhere.
    """

    local: optax.OptState
    mixed: base.PyTree = ()


def local_steps(
    direction: optax.GradientTransformation,
    gossip_rate: base.GossipRate = 1.0,
    gradient_at: str = "mixed",
    restart: bool = False,
) -> base.Algorithm:
    """Gossip, and a step of any local optimizer.

    Args:
      direction: Transform of stacked gradients to stacked directions d, without learning rate.
      gossip_rate: gamma in (0, 1].
      gradient_at: "mixed" or "unmixed".
      restart: Whether the local optimizer begins anew at every exchange.

    Raises:
      ValueError: `gradient_at` is neither.
    """
    unmixed = base.choice("gradient_at", gradient_at, ("mixed", "unmixed")) == "unmixed"

    def init(params, talk):
        return DsgdState(direction.init(params), trees.copy(params) if unmixed else ())

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        mixed, _ = base.gossip(talk, message, gossip_rate)
        if restart:
            fresh = trees.where(talk.active, direction.init(params), state.local)
            state = state._replace(local=fresh)
        if unmixed:
            return params, state._replace(mixed=mixed), message
        return mixed, state, message

    def update(grads, eval_params, state, talk, lr):
        d, local = direction.update(grads, state.local, eval_params)
        start = state.mixed if unmixed else eval_params
        return trees.axpy(-lr, d, start), state._replace(local=local)

    return base.Algorithm(init, communicate, update)


_REFERENCE = "Lian et al., NeurIPS 2017, arXiv:1705.09056"


@base.register(
    "dsgd",
    summary="decentralized SGD without momentum",
    reference=_REFERENCE,
    capabilities=base.GOSSIP,
    momentum=0.0,
    nesterov=False,
    restart_momentum=False,
)
@base.register(
    "dsgdm",
    summary="decentralized SGD with local heavy-ball momentum",
    reference=_REFERENCE,
    capabilities=base.GOSSIP,
    nesterov=False,
)
@base.register(
    "dsgdm-n",
    summary="decentralized SGD with local Nesterov momentum",
    reference=_REFERENCE,
    capabilities=base.GOSSIP,
    nesterov=True,
)
def dsgd(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
    gradient_at: str = "mixed",
    restart_momentum: bool = False,
) -> base.Algorithm:
    """Decentralized SGD.

    Args:
      momentum: beta in [0, 1).
      nesterov: Nesterov's form of it.
      weight_decay: lam, added to the gradient.
      gossip_rate: gamma in (0, 1]; the authors use 1 on rings, 0.9 on Dyck and torus.
      gradient_at: "mixed" (as CCL) or "unmixed" (combine, then adapt).
      restart_momentum: Momentum is 0 again at every exchange, as in the clients of federated learning.

    Example:
      >>> algorithm = dsgd(momentum=0.9, nesterov=True)
      >>> state = algorithm.init(params, talk)
    """
    direction = base.sgd_direction(momentum, nesterov, weight_decay)
    return local_steps(direction, gossip_rate, gradient_at, restart_momentum)
