"""Aug-DGM (ATC-DIGing): gradient tracking that mixes the new gradients, too.

Xu, Zhu, Soh, Xie, "Augmented Distributed Gradient Methods for Multi-Agent Optimization Under
Uncoordinated Constant Stepsizes", CDC 2015; ATC-DIGing: Nedic, Olshevsky, Shi, Uribe, "Geometrically
Convergent Distributed Optimization with Uncoordinated Step-Sizes", ACC 2017, arXiv:1609.05877. With
u = g(x) + lam x:

    x_{t+1} = W (x_t - eta y_t);   y_{t+1} = W (y_t + u_{t+1} - u_t);   y_0 = u_0

ATC tracking (see `kgt`) leaves u_{t+1} - u_t out of the mix. What is mixed here is known after the
gradient only, so there are two exchanges a step: twice the bytes of DSGD, in two messages.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, graph_checks


class AugDgmState(NamedTuple):
    """State of Aug-DGM.

    Attributes:
      tracker: y, like params.
      gradient: u_{t-1}, like params.
      step: t, scalar int32.
    """

    tracker: base.PyTree
    gradient: base.PyTree
    step: jax.Array


@base.register(
    "aug-dgm",
    summary="gradient tracking that mixes tracker and gradients (ATC-DIGing)",
    reference="Xu et al., CDC 2015; Nedic et al., ACC 2017, arXiv:1609.05877",
    capabilities=base.TRACKING,
    **graph_checks.DOUBLY_STOCHASTIC,
)
def aug_dgm(*, weight_decay: float = 1e-4, gossip_rate: base.GossipRate = 1.0) -> base.Algorithm:
    """Aug-DGM.

    Args:
      weight_decay: lam, added to the gradient.
      gossip_rate: gamma in (0, 1].
    """

    def init(params, talk):
        zeros = optax.tree.zeros_like
        return AugDgmState(zeros(params), zeros(params), jnp.int32(0))

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        mixed, _ = base.gossip(talk, message, gossip_rate)
        return mixed, state, message

    def update(grads, eval_params, state, talk, lr):
        u = trees.axpy(weight_decay, eval_params, grads)
        h = jax.tree.map(lambda y, new, old: y + new - old, state.tracker, u, state.gradient)
        # y_0 = u_0 is not mixed; zeros are sent for it, which all know.
        first = state.step == 0
        message = talk.send("tracker", trees.where(first, optax.tree.zeros_like(h), h))
        mixed, _ = base.gossip(talk, message, gossip_rate)
        y = trees.where(first, h, mixed)
        return trees.axpy(-lr, y, eval_params), AugDgmState(y, u, state.step + 1)

    return base.Algorithm(init, communicate, update)
