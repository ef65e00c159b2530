"""LED and ProxSkip: exact diffusion with local steps, at regular times or by chance.

LED: Alghunaim, "Local Exact-Diffusion for Decentralized Optimization and Learning", IEEE TAC 2024,
arXiv:2302.00620. A round of K local steps from p = x, with u(p) = g(p) + lam p:

    p <- p - eta u(p) - beta y, K times;   x <- W p;   y <- y + p - x;   y = 0 at first

ProxSkip: Mishchenko et al., ICML 2022, arXiv:2202.09357; on a graph as in Guo et al., "Revisiting
Decentralized ProxSkip", arXiv:2310.07983. One coin for all agents, heads with probability p:

    z = x - eta u(x) - y;   heads:  x <- V z,  y <- y + beta (z - x);   tails:  x <- z
    V = I - (I - W) / (2 chi)

Both are `d2.corrected` with c = -y / eta, or -beta y / eta in LED: y is kept in units of gradients, so
that it stays right when the learning rate changes; at a constant rate that is the same. What is given
here is `correction_rate` rho, which means the same for any number of local steps: beta is rho / K in
LED and rho p in ProxSkip. With K = 1, rho = 1 and V = (I + W) / 2 both are exact diffusion.

The network says how often agents talk: its `local_steps` are K, and 1 / p.
"""

import dataclasses

from ccl_jax.algorithms import base, d2, graph_checks

# Losses make a graph change, as for exact diffusion.
_CAPABILITIES = dataclasses.replace(base.EVERY_STEP, rarely=True)
_GRAPH = graph_checks.ONE_GRAPH["graph"]
_CHECK = d2.STABLE["check"]


@base.register(
    "led",
    summary="exact diffusion with local steps",
    reference="Alghunaim, IEEE TAC 2024, arXiv:2302.00620",
    capabilities=_CAPABILITIES,
    graph=f"{_GRAPH}, smallest eigenvalue > -0.6",
    check=_CHECK,
)
def led(
    *, correction_rate: float = 0.5, weight_decay: float = 1e-4, gossip_rate: base.GossipRate = 1.0
) -> base.Algorithm:
    """LED.

    Args:
      correction_rate: rho = K beta > 0. At 0.5 every graph works whose smallest eigenvalue is above
        -0.6; at 1, as in D2, it must be above -1/3.
      weight_decay: lam, added to the gradient.
      gossip_rate: gamma in (0, 1]; 1 is W itself.
    """
    direction = base.sgd_direction(weight_decay=weight_decay)
    return d2.corrected(direction, gossip_rate, correction_rate)


@base.register(
    "proxskip",
    summary="exact diffusion that skips exchanges by chance",
    reference="Mishchenko et al., ICML 2022, arXiv:2202.09357; arXiv:2310.07983",
    capabilities=dataclasses.replace(_CAPABILITIES, by_chance=True),
    graph=_GRAPH,
    check=_CHECK,
)
def proxskip(
    *, correction_rate: float = 1.0, weight_decay: float = 1e-4, gossip_rate: base.GossipRate = 0.5
) -> base.Algorithm:
    """ProxSkip; its coins are thrown by the network (`coins`), and fall alike in every run of a seed.

    Args:
      correction_rate: rho = beta / p > 0; 1 is the published choice, beta = p.
      weight_decay: lam, added to the gradient.
      gossip_rate: gamma = 1 / (2 chi) in (0, 1]; 0.5 is chi = 1.
    """
    return led(correction_rate=correction_rate, weight_decay=weight_decay, gossip_rate=gossip_rate)
