"""QG-Adam: Adam whose second moment follows the displacement of the mixed model.

Lin et al., ICML 2021, arXiv:2102.04761, the variant that the published code runs:

    u = g_i(xt_i) + lam xt_i;   p <- b1 p + (1 - b1) u;   v = b2 q + (1 - b2) u^2  (v is not kept)
    x_i <- xt_i - eta / (1 - b1^t) p / (sqrt(v / (1 - b2^t)) + eps)
    D = xt_i,prev - xt_i;   n = D / (||D|| + eps), one norm an agent;   q <- b2 q + (1 - b2) n^2

The first moment p stays local. (The paper's text makes it quasi-global too.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base


class QGAdamState(NamedTuple):
    """State of QG-Adam.

    Attributes:
      first: p, like params.
      second: q, like params.
      previous: xt of the step before, like params.
      step: t, scalar int32.
    """

    first: base.PyTree
    second: base.PyTree
    previous: base.PyTree
    step: jax.Array


@base.register(
    "qg-adam",
    summary="Adam with a quasi-global second moment",
    reference="Lin et al., ICML 2021, arXiv:2102.04761",
    capabilities=base.GOSSIP,
)
def quasi_global_adam(
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
) -> base.Algorithm:
    """QG-Adam; other arguments as `optimizers.adam`.

    Args:
      eps: Added to roots and norms.
      weight_decay: lam, added to the gradient.
    """

    def init(params, talk):
        zeros = optax.tree.zeros_like
        return QGAdamState(zeros(params), zeros(params), trees.copy(params), jnp.int32(0))

    def square(tree):
        return jax.tree.map(jnp.square, tree)

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        mixed, _ = base.gossip(talk, message, gossip_rate)
        moved = optax.tree.sub(state.previous, mixed)
        norms = jax.vmap(optax.tree.norm)(moved) + eps
        normalise = lambda tree, norm: jax.tree.map(lambda x: x / norm.astype(x.dtype), tree)
        direction = jax.vmap(normalise)(moved, norms)
        # Agents that start alike have not moved yet; normalising would make roundoff a signal.
        second = trees.where(
            state.step > 0, trees.moving_average(b2, state.second, square(direction)), state.second
        )
        return mixed, state._replace(second=second, previous=mixed), message

    def update(grads, eval_params, state, talk, lr):
        u = trees.axpy(weight_decay, eval_params, grads)
        t = (state.step + 1).astype(trees.sum_type(eval_params))
        first = trees.moving_average(b1, state.first, u)
        v = trees.moving_average(b2, state.second, square(u))

        def advance(x, p, v):
            rate, correction = (y.astype(x.dtype) for y in (lr / (1 - b1**t), 1 - b2**t))
            return x - rate * p / (jnp.sqrt(v / correction) + eps)

        params = jax.tree.map(advance, eval_params, first, v)
        return params, state._replace(first=first, step=state.step + 1)

    return base.Algorithm(init, communicate, update)
