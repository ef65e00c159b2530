"""EXTRA, and simple gradient tracking: combine-then-adapt relatives of exact diffusion.

EXTRA: Shi, Ling, Wu, Yin, "EXTRA: An Exact First-Order Algorithm for Decentralized Consensus
Optimization", SIAM J. Optimization 2015, arXiv:1404.6264. With u = g(x) + lam x at the unmixed x:

    x_1 = W x_0 - eta u_0;   x_{t+1} = x_t + W x_t - V x_{t-1} - eta (u_t - u_{t-1}),   V = (I + W) / 2

Summed up over the steps, with rho = 1/2:

    x_{t+1} = W x_t - eta (u_t - c_t);   c_{t+1} = c_t + rho (W x_t - x_t) / eta;   c_0 = 0

c is kept in units of gradients, so that it stays right when the learning rate changes. With rho = 1,
that is V = I, it is the simple gradient tracking of decent-bench (on GitHub, team-decent/decent-bench):

    x_{t+1} = W x_t + psi_t - psi_{t-1},   psi = x - eta u,   psi_{-1} = x_0

There nothing but the curvature of the losses damps how far the agents are apart, so it is the one that
suffers most from the noise of mini-batches.

Agents take their gradient at the model that they send, so the exchange can overlap with it.
"""

import dataclasses
from typing import NamedTuple

import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, d2, graph_checks


class ExtraState(NamedTuple):
    """State of EXTRA.

    Attributes:
      correction: c, like params.
      mixed: W x, where the step starts.
    """

    correction: base.PyTree
    mixed: base.PyTree


@base.register(
    "simplegt",
    summary="EXTRA with the whole bias corrected at once",
    reference="team-decent/decent-bench",
    capabilities=dataclasses.replace(
        base.EVERY_STEP, uncompressed="does not damp what compression leaves out; take extra"
    ),
    correction_rate=1.0,
    **graph_checks.ONE_GRAPH,
)
@base.register(
    "extra",
    summary="gossip SGD with its bias corrected, gradient at the unmixed models",
    reference="Shi et al., SIAM J. Optim. 2015, arXiv:1404.6264",
    capabilities=base.EVERY_STEP,
    correction_rate=0.5,
    **graph_checks.ONE_GRAPH,
)
def extra(
    *, correction_rate: float, weight_decay: float = 1e-4, gossip_rate: base.GossipRate = 1.0
) -> base.Algorithm:
    """EXTRA.

    Args:
      correction_rate: rho; 0.5 in EXTRA, 1 in simple gradient tracking.
      weight_decay: lam, added to the gradient.
      gossip_rate: gamma in (0, 1]; 1 is W itself.
    """

    def init(params, talk):
        return ExtraState(optax.tree.zeros_like(params), trees.copy(params))

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        mixed, _ = base.gossip(talk, message, gossip_rate)
        return params, state._replace(mixed=mixed), message

    def update(grads, eval_params, state, talk, lr):
        u = trees.axpy(weight_decay, eval_params, grads)
        params = trees.axpy(-lr, optax.tree.sub(u, state.correction), state.mixed)
        moved = optax.tree.sub(state.mixed, eval_params)
        correction = trees.axpy(correction_rate * d2.inverse_rate(lr), moved, state.correction)
        return params, state._replace(correction=correction)

    return base.Algorithm(init, communicate, update)
