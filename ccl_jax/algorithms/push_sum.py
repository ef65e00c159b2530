"""Stochastic gradient push (SGP): gossip on directed graphs, corrected by push-sum weights.

Assran et al., "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019, arXiv:1811.10792.

Every agent splits what it has among those it sends to, so the columns of P sum to 1 but its rows need
not. A weight w that is pushed along undoes the bias:

    z = x / w;   u = g(z) + lam x;   d = momentum(u), local;   x <- P (x - eta d);   w <- P w

Weight decay acts on the numerator x, as in the published code. On regular graphs w stays 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base


class PushSumState(NamedTuple):
    """State of SGP.

    Attributes:
      weight: w, `[agents]` float32.
      numerator: x after `communicate`, like params.
      local: State of the local momentum.
    """

    weight: jax.Array
    numerator: base.PyTree
    local: optax.OptState


@base.register(
    "sgp",
    summary="push-sum with local Nesterov momentum, for directed graphs",
    reference="Assran et al., ICML 2019, arXiv:1811.10792",
    # No gradient pulls w back to 1: noise on it adds up, until somebody divides by nearly 0.
    capabilities=base.Capabilities(keeps_sums=True, adds_up=True),
    graph="any with column-stochastic weights, also over time",
    stochastic="column",
)
def push_sum(
    *, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 1e-4
) -> base.Algorithm:
    """SGP.

    Args:
      momentum: beta of the local momentum.
      nesterov: Nesterov's form of it.
      weight_decay: lam, of the numerator.
    """
    direction = base.sgd_direction(momentum, nesterov, weight_decay)

    def init(params, talk):
        agents = talk.mask.shape[0]
        return PushSumState(
            jnp.ones(agents, trees.sum_type(params)), trees.copy(params), direction.init(params)
        )

    def communicate(params, state, talk, lr):
        message = talk.send("numerator and weight", (params, state.weight))
        numerator, weight = talk.mix(message)
        state = state._replace(weight=weight, numerator=numerator)
        return _divide(numerator, weight), state, message.map(lambda sent: _divide(*sent))

    def update(grads, eval_params, state, talk, lr):
        d, local = direction.update(grads, state.local, state.numerator)
        return trees.axpy(-lr, d, state.numerator), state._replace(local=local)

    return base.Algorithm(
        init, communicate, update, models=lambda params, state: _divide(params, state.weight)
    )


def _divide(tree: base.PyTree, weight: jax.Array) -> base.PyTree:
    # Copies that start at zero have no weight either; what is known of such a model is zero.
    weight = jnp.where(weight > 0, weight, jnp.ones_like(weight))

    def divide(x: jax.Array) -> jax.Array:
        return x / trees.per_agent(weight.astype(x.dtype), x)

    return jax.tree.map(divide, tree)
