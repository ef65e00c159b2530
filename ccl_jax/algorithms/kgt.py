"""K-GT: gradient tracking with K local steps; with one it is ATC tracking.

K-GT: Liu, Lin, Koloskova, Stich, "Decentralized Gradient Tracking with Local Steps", 2023,
arXiv:2301.01313. A round of K local steps from y = x, with u(y) = g(y) + lam y:

    y <- y - eta (u(y) + c), K times;   z = the mean of the K directions u(y) + c
    x <- W (x - eta_s (x - y));   c <- c - z + W z;   c = 0 at first

(The paper starts c at the mean gradient minus the own one, which needs an exact average.) The published
z is (x - y) / (K eta), which is the same at a constant rate. The network's `local_steps` are K.

ATC tracking: Di Lorenzo & Scutari, "NEXT", IEEE TSIPN 2016, arXiv:1602.00591; Scutari & Sun, "SONATA",
arXiv:1809.01106. It is K-GT with K = eta_s = 1, where z = u + c is the tracker:

    x_{t+1} = W (x_t - eta z_t);   z_{t+1} = W z_t + u_{t+1} - u_t;   z_0 = u_0

At a constant rate that is also `update-tracking` without momentum, which tracks steps, not gradients.

Model and direction travel together: twice the bytes of DSGD.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, graph_checks


class KgtState(NamedTuple):
    """State of K-GT.

    Attributes:
      correction: c, like params.
      total: Sum of the directions since the last exchange, like params.
      steps: `[agents]`, how many they are.
      start: x, where the round started; only kept when eta_s is not 1.
    """

    correction: base.PyTree
    total: base.PyTree
    steps: jax.Array
    start: base.PyTree = ()


@base.register(
    "atc-gt",
    summary="gradient tracking, adapt then combine (NEXT, SONATA)",
    reference="Di Lorenzo & Scutari, IEEE TSIPN 2016, arXiv:1602.00591",
    capabilities=base.TRACKING,
    server_step_size=1.0,
    **graph_checks.DOUBLY_STOCHASTIC,
)
@base.register(
    "k-gt",
    summary="gradient tracking with local steps",
    reference="Liu et al., arXiv:2301.01313",
    capabilities=base.TRACKING,
    **graph_checks.DOUBLY_STOCHASTIC,
)
def kgt(
    *, server_step_size: float = 1.0, weight_decay: float = 1e-4, gossip_rate: base.GossipRate = 1.0
) -> base.Algorithm:
    """K-GT.

    Args:
      server_step_size: eta_s > 0, how much of a round's way is gone.
      weight_decay: lam, added to the gradient.
      gossip_rate: gamma in (0, 1].
    """
    whole = server_step_size == 1

    def init(params, talk):
        zeros = optax.tree.zeros_like
        steps = jnp.zeros(talk.ids.shape, trees.sum_type(params))
        return KgtState(zeros(params), zeros(params), steps, () if whole else trees.copy(params))

    def communicate(params, state, talk, lr):
        count = jnp.maximum(state.steps, 1)
        z = jax.tree.map(lambda s: s / trees.per_agent(count.astype(s.dtype), s), state.total)
        model = params
        if not whole:
            model = trees.axpy(server_step_size, optax.tree.sub(params, state.start), state.start)
        message = talk.send("params and direction", (model, z))
        (mixed, _), (_, moved) = base.gossip(talk, message, gossip_rate)
        exchanged = KgtState(
            optax.tree.add(state.correction, moved),
            *optax.tree.zeros_like((state.total, state.steps)),
            () if whole else mixed,
        )
        x, state = trees.where(talk.active, (mixed, exchanged), (params, state))
        return x, state, message.map(lambda sent: sent[0])

    def update(grads, eval_params, state, talk, lr):
        u = trees.axpy(weight_decay, eval_params, grads)
        d = optax.tree.add(u, state.correction)
        state = state._replace(total=optax.tree.add(state.total, d), steps=state.steps + 1)
        return trees.axpy(-lr, d, eval_params), state

    return base.Algorithm(init, communicate, update)
