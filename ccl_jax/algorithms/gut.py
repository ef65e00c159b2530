"""Global update tracking: GUT, and QG-GUTm with momentum.

Aketi, Hashemi & Roy, "Global Update Tracking: A Decentralized Learning Algorithm for Heterogeneous
Data", NeurIPS 2023, arXiv:2305.04792. As its published code runs, with h_t = [(W - I) x_t]:

    delta_t = g(x_t + gamma h_t) - h_t / eta_prev;   q_t = W (x_t - x_{t-1})
    y_t = delta_t - (mu / eta_prev) (q_t + b h_{t-1}) - mu delta_{t-1}
    d = momentum(y_t);   x_{t+1} = x_t + (gamma - gamma^2) h_t - eta_t d

b = 1 without momentum, 1 + beta, or 1 + beta + beta^2 with Nesterov. All terms at t < 0 are zero.
The paper sends the difference x_t - x_{t-1}, from which a neighbour keeps its copy of x_t; here x_t
itself is sent, which is the same number of bytes, and W x_t - W x_{t-1} is q_t on a static graph.
With mu = 0 it is that code's own displacement form of quasi-global momentum: the gossip enters momentum
beside the gradient and not, as in `quasi_global.displacement`, before the momentum decays.
"""

import dataclasses
from typing import NamedTuple

import jax
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, graph_checks

# It forgets what it has heard, by tracking_scale.
_CAPABILITIES = dataclasses.replace(base.EVERY_STEP, adds_up=False)
_REFERENCE = "Aketi et al., NeurIPS 2023, arXiv:2305.04792"


class GutState(NamedTuple):
    """State of GUT and QG-GUTm.

    Attributes:
      mixed: W x_t after `communicate`, like params.
      mixed_moved: q_t, like params.
      base: x_t, where the step starts.
      gossip: h_{t-1}, like params.
      delta: delta_{t-1}, like params.
      local: State of the momentum.
      lr: eta_prev, scalar; 0 before the first step.
    """

    mixed: base.PyTree
    mixed_moved: base.PyTree
    base: base.PyTree
    gossip: base.PyTree
    delta: base.PyTree
    local: optax.OptState
    lr: jax.Array


@base.register(
    "gut",
    summary="global update tracking without momentum",
    reference=_REFERENCE,
    capabilities=_CAPABILITIES,
    graph="static, row stochastic",
    check=(graph_checks.static,),
    momentum=0.0,
    nesterov=False,
)
def gut(
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    gossip_rate: base.GossipRate = 1.0,
    tracking_scale: float = 0.9,
) -> base.Algorithm:
    """GUT. The published code has no weight decay.

    Args:
      momentum: beta in [0, 1).
      nesterov: Nesterov's form of it.
      gossip_rate: gamma in (0, 1].
      tracking_scale: mu; published: 0.9 without momentum, 0.005 to 0.08 with it.
    """
    direction = base.sgd_direction(momentum, nesterov)
    b = 1 + momentum + (momentum**2 if nesterov else 0.0)

    def init(params, talk):
        return GutState(
            mixed=trees.copy(params),
            mixed_moved=optax.tree.zeros_like(params),
            base=trees.copy(params),
            gossip=optax.tree.zeros_like(params),
            delta=optax.tree.zeros_like(params),
            local=direction.init(params),
            lr=base.no_rate(params),
        )

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        mixed = talk.mix(message)
        moved = optax.tree.sub(mixed, state.mixed)
        h = optax.tree.sub(mixed, params)
        state = state._replace(mixed=mixed, mixed_moved=moved, base=params)
        return trees.axpy(base.rate_at(gossip_rate, talk), h, params), state, message

    def update(grads, eval_params, state, talk, lr):
        eta = base.safe_previous(state.lr, lr)
        h = optax.tree.sub(state.mixed, state.base)
        delta = trees.axpy(-1 / eta, h, grads)

        def track(delta, q, h_old, delta_old):
            gossip = (q + b * h_old) / eta.astype(q.dtype)
            return delta - tracking_scale * (gossip + delta_old)

        y = jax.tree.map(track, delta, state.mixed_moved, state.gossip, state.delta)
        d, local = direction.update(y, state.local, eval_params)
        gamma = base.rate_at(gossip_rate, talk)
        params = trees.axpy(-lr, d, trees.axpy(gamma - gamma**2, h, state.base))
        return params, state._replace(gossip=h, delta=delta, local=local, lr=lr)

    return base.Algorithm(init, communicate, update)


@base.register(
    "qg-gutm",
    summary="global update tracking with quasi-global Nesterov momentum",
    reference=_REFERENCE,
    capabilities=_CAPABILITIES,
    graph="static, row stochastic",
    check=(graph_checks.static,),
)
def qg_gutm(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    gossip_rate: base.GossipRate = 1.0,
    tracking_scale: float = 0.06,
) -> base.Algorithm:
    """QG-GUTm; arguments as `gut`."""
    return gut(
        momentum=momentum,
        nesterov=nesterov,
        gossip_rate=gossip_rate,
        tracking_scale=tracking_scale,
    )
