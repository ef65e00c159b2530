"""DecentLaM: momentum on the decentralized gradient, which removes the bias momentum adds.

Yuan et al., "DecentLaM: Decentralized Momentum SGD for Large-Batch Deep Training", ICCV 2021,
arXiv:2104.11981.

    u = g(x) + lam x;   gt = (x - W (x - eta u)) / eta;   m <- beta m + gt;   x <- x - eta m

What is sent is x - eta u, one exchange a step. That is also what evaluation and the neighbours'
cross-features see: x itself is never sent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, graph_checks


class DecentLaMState(NamedTuple):
    """State of DecentLaM.

    Attributes:
      momentum: m, like params.
      model: x, like params.
      lr: eta of the step whose half step is under way, scalar; 0 before the first.
    """

    momentum: base.PyTree
    model: base.PyTree
    lr: jax.Array


@base.register(
    "decentlam",
    summary="momentum of the decentralized gradient",
    reference="Yuan et al., ICCV 2021, arXiv:2104.11981",
    capabilities=base.Capabilities(keeps_sums=True),
    **graph_checks.DOUBLY_STOCHASTIC,
)
def decentlam(*, momentum: float = 0.9, weight_decay: float = 1e-3) -> base.Algorithm:
    """DecentLaM.

    Args:
      momentum: beta in [0, 1).
      weight_decay: lam, added to the gradient; the recorded code fixes 1e-3.
    """

    def init(params, talk):
        return DecentLaMState(
            optax.tree.zeros_like(params), trees.copy(params), base.no_rate(params)
        )

    def communicate(params, state, talk, lr):
        eta = base.safe_previous(state.lr, lr)
        # Before the first step there is no gradient yet: params is x, and gt is the gossip alone.
        message = talk.send("half step", params)
        mixed = talk.mix(message)
        gt = jax.tree.map(lambda x, m: (x - m) / eta.astype(x.dtype), state.model, mixed)
        m = trees.axpy(momentum, state.momentum, gt)
        # Where a warm-up starts nothing was added to x, so that the half step is x itself.
        x = trees.where(jnp.isfinite(eta), trees.axpy(-eta, m, state.model), mixed)
        return x, DecentLaMState(m, x, lr), message

    def update(grads, eval_params, state, talk, lr):
        u = trees.axpy(weight_decay, eval_params, grads)
        return trees.axpy(-lr, u, eval_params), state

    return base.Algorithm(init, communicate, update)
