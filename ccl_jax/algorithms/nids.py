"""NIDS: exact diffusion whose first step is not mixed.

Li, Shi, Yan, "A Decentralized Proximal-Gradient Method with Network Independent Step-Sizes and Separated
Convergence Rates", IEEE TSP 2019, arXiv:1704.07807. With V = (I + W) / 2 and u = g(x) + lam x:

    x_1 = x_0 - eta u_0;   x_{t+1} = V [ 2 x_t - x_{t-1} - eta (u_t - u_{t-1}) ]

In the lr-safe form of D2 (see `d2`) that is exact diffusion in which the exchange that opens step 1
moves nothing. The models are sent in that step, too; only losses on features use them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax import trees
from ccl_jax.algorithms import base, d2, graph_checks


class NidsState(NamedTuple):
    """State of NIDS.

    Attributes:
      corrected: State of the corrected recursion.
      step: t, scalar int32.
    """

    corrected: d2.SafeState
    step: jax.Array


@base.register(
    "nids",
    summary="exact diffusion with an unmixed first step",
    reference="Li et al., IEEE TSP 2019, arXiv:1704.07807",
    capabilities=base.EVERY_STEP,
    **graph_checks.ONE_GRAPH,
)
def nids(*, weight_decay: float = 1e-4) -> base.Algorithm:
    """NIDS with one step size for all agents.

    Args:
      weight_decay: lam, added to the gradient.
    """
    exact = d2.corrected(base.sgd_direction(weight_decay=weight_decay), gossip_rate=0.5)

    def init(params, talk):
        return NidsState(exact.init(params, talk), jnp.int32(0))

    def communicate(params, state, talk, lr):
        mixed, corrected, message = exact.communicate(params, state.corrected, talk, lr)
        alone = (params, state.corrected)
        mixed, corrected = trees.where(state.step > 1, (mixed, corrected), alone)
        return mixed, state._replace(corrected=corrected), message

    def update(grads, eval_params, state, talk, lr):
        params, corrected = exact.update(grads, eval_params, state.corrected, talk, lr)
        return params, NidsState(corrected, state.step + 1)

    return base.Algorithm(init, communicate, update)
