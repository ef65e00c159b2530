"""Gradient tracking: every agent follows the average gradient of all.

DSGT: Pu & Nedic, arXiv:1805.11454; Koloskova et al., NeurIPS 2021, arXiv:2202.03836. With momentum as
in the code of Lin et al., arXiv:2102.04761:

    y_t = [W y_{t-1}] + u_t - u_{t-1}  (y_0 = u_0);   d = momentum(y_t), local
    x_{t+1} = [W x_t] - eta d,   u_t = g(x_t) + lam x_t at the unmixed x_t

Update tracking (the form in the code of Vogels et al., arXiv:2110.04175) tracks local steps, with
learning rate and momentum inside:

    r_t = -eta d_t, d_t = momentum(u_t);   x_{t+1} = W (x_t + r_t + k_t);   k_{t+1} = W (k_t + r_t) - r_t

Model and tracker travel together: twice the bytes of DSGD.
"""

from typing import NamedTuple

import jax
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, graph_checks


class TrackingState(NamedTuple):
    """State of DSGT.

    Attributes:
      tracker: y, like params: sent; after `communicate`, W y.
      gradient: u_{t-1}, like params.
      mixed: W x, where the step starts.
      local: State of the local momentum.
    """

    tracker: base.PyTree
    gradient: base.PyTree
    mixed: base.PyTree
    local: optax.OptState


@base.register(
    "dsgt",
    summary="gradient tracking, with local momentum on the tracker",
    reference="Pu & Nedic, arXiv:1805.11454; code of arXiv:2102.04761",
    capabilities=base.TRACKING_UNMIXED,
    **graph_checks.DOUBLY_STOCHASTIC,
)
def gradient_tracking(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
) -> base.Algorithm:
    """DSGT; other arguments as `dsgd.dsgd`.

    Args:
      momentum: beta, applied to the tracker; 0 is plain DSGT.
    """
    direction = base.sgd_direction(momentum, nesterov)

    def init(params, talk):
        # W 0 + u_0 - 0 = u_0: zeros are the published start.
        zeros = optax.tree.zeros_like
        return TrackingState(
            zeros(params), zeros(params), trees.copy(params), direction.init(params)
        )

    def communicate(params, state, talk, lr):
        message = talk.send("params and tracker", (params, state.tracker))
        (mixed, tracker), _ = base.gossip(talk, message, gossip_rate)
        state = state._replace(mixed=mixed, tracker=tracker)
        return params, state, message.map(lambda sent: sent[0])

    def update(grads, eval_params, state, talk, lr):
        u = trees.axpy(weight_decay, eval_params, grads)
        y = jax.tree.map(lambda w, new, old: w + new - old, state.tracker, u, state.gradient)
        d, local = direction.update(y, state.local, eval_params)
        return trees.axpy(-lr, d, state.mixed), TrackingState(y, u, state.mixed, local)

    return base.Algorithm(init, communicate, update)


class UpdateTrackingState(NamedTuple):
    """State of update tracking.

    Attributes:
      tracker: k + r, like params: sent; after `communicate`, k.
      step: r of the last step, like params.
      local: State of the local momentum.
    """

    tracker: base.PyTree
    step: base.PyTree
    local: optax.OptState


@base.register(
    "update-tracking",
    summary="gradient tracking of whole local steps",
    reference="code of Vogels et al., arXiv:2110.04175",
    capabilities=base.TRACKING,
    **graph_checks.DOUBLY_STOCHASTIC,
)
def update_tracking(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
) -> base.Algorithm:
    """Update tracking; arguments as `dsgd.dsgd`, whose local step is what is tracked."""
    direction = base.sgd_direction(momentum, nesterov, weight_decay)

    def init(params, talk):
        zeros = optax.tree.zeros_like
        return UpdateTrackingState(zeros(params), zeros(params), direction.init(params))

    def communicate(params, state, talk, lr):
        message = talk.send("params and tracker", (params, state.tracker))
        (mixed, tracker), _ = base.gossip(talk, message, gossip_rate)
        state = state._replace(tracker=optax.tree.sub(tracker, state.step))
        return mixed, state, message.map(lambda sent: sent[0])

    def update(grads, eval_params, state, talk, lr):
        d, local = direction.update(grads, state.local, eval_params)
        r = trees.axpy(-lr, d, optax.tree.zeros_like(d))
        sent = optax.tree.add(state.tracker, r)
        return optax.tree.add(eval_params, sent), UpdateTrackingState(sent, r, local)

    return base.Algorithm(init, communicate, update)
