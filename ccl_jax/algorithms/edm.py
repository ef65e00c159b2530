"""EDM: exact diffusion whose local step has heavy-ball momentum.

Hu, Chen, Liu, Mao, "A Bias-Correction Decentralized Stochastic Gradient Algorithm with Momentum
Acceleration", 2025, arXiv:2501.19082. With u = g(x) + lam x:

    m <- beta m + (1 - beta) u;   psi = x - eta m;   phi = psi + x - psi_before;   x <- W phi

There is no public code and no recording to compare with. Assumed here: m starts at 0 and psi_before at
x_0, as in exact diffusion; W is the mixing matrix itself (so its eigenvalues must be above -1/3, as in
D2; gossip_rate 0.5 is (I + W) / 2); and weight decay is part of the gradient.

phi is x - eta (m - c) with c as in `d2.corrected`, which this is: at a constant rate both are the same,
and when the learning rate changes the correction stays right.
"""

import optax

from ccl_jax.algorithms import base, d2


@base.register(
    "edm",
    summary="exact diffusion with heavy-ball momentum in the local step",
    reference="Hu et al., arXiv:2501.19082",
    capabilities=base.EVERY_STEP,
    **d2.STABLE,
)
def edm(
    *, momentum: float = 0.9, weight_decay: float = 1e-4, gossip_rate: base.GossipRate = 1.0
) -> base.Algorithm:
    """EDM.

    Args:
      momentum: beta in [0, 1), of an average: the learning rate means what it means without momentum.
      weight_decay: lam, added to the gradient.
      gossip_rate: gamma in (0, 1].
    """
    average = base.each_agent(optax.ema(momentum, debias=False))
    decay = base.sgd_direction(weight_decay=weight_decay)
    return d2.corrected(optax.chain(decay, average), gossip_rate)
