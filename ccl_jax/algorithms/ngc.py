"""Neighbourhood gradient clustering: NGC, and CompNGC with compressed cross-gradients.

Aketi, Kodge & Roy, "Neighborhood Gradient Clustering: An Efficient Decentralized Learning Method for
Non-IID Data Distributions", TMLR 2023, arXiv:2209.14390.

    G_i = p [ o_i + sum over neighbours j of (1 - alpha) M_ij + alpha G_ij ],   p = 1 / (degree + 1)

o_i is the own gradient, M_ij that of the received model x_j on the own data, G_ij that of the own model
on j's data. G_i takes the gradient's place in DSGDm-N or in quasi-global momentum (moving average).
alpha = 0 needs nothing beyond the models; alpha = 1 sends one gradient back to each neighbour.
"""

import jax

from ccl_jax import trees
from ccl_jax.algorithms import base, cross_gradients, dsgd, graph_checks, quasi_global
from ccl_jax.network import compression

_REFERENCE = "Aketi et al., TMLR 2023, arXiv:2209.14390"


@base.register(
    "ngc",
    summary="mean of own and cross-gradients",
    reference=_REFERENCE,
    capabilities=base.Capabilities(uncompressed=cross_gradients.UNCOMPRESSED),
    graph="undirected",
    check=(graph_checks.undirected,),
    compress=False,
)
@base.register(
    "comp-ngc",
    summary="NGC with sign compression and error feedback",
    reference=_REFERENCE,
    capabilities=base.Capabilities(
        lossless=base.EVERY_STEP.lossless,
        noiseless=cross_gradients.NOISELESS,
    ),
    graph="static, undirected",
    check=(graph_checks.static, graph_checks.undirected),
    compress=True,
)
def ngc(
    *,
    alpha: float = 1.0,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
    quasi_global_momentum: bool = False,
    compress: bool = False,
) -> base.Algorithm:
    """NGC.

    Args:
      alpha: 0 (model-variant only) to 1 (data-variant only). Not the Dirichlet alpha.
      momentum: beta in [0, 1).
      nesterov: Nesterov's form of it.
      weight_decay: lam, added to the merged gradient.
      gossip_rate: gamma in (0, 1].
      quasi_global_momentum: Quasi-global momentum, moving average with factor 1 - beta.
      compress: Sign compression with error feedback.

    Raises:
      ValueError: alpha out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha of NGC is {alpha}; it must be in [0, 1]")
    common = {
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "gossip_rate": gossip_rate,
    }
    if quasi_global_momentum:
        inner = quasi_global.ema(**common, ema_factor=1 - momentum)
    else:
        inner = dsgd.dsgd(**common)

    def merge(own, cross, talk):
        p = 1 / (1 + talk.mask.sum(axis=1, dtype=trees.sum_type(own)))
        parts = [own]
        if alpha < 1:
            parts.append(_weighted_sum(1 - alpha, cross))
        if alpha > 0:
            size = compression.SIGN.message_bytes(cross, 2) if compress else None
            parts.append(
                _weighted_sum(alpha, talk.reply("cross-gradients", cross, message_bytes=size))
            )

        def mean(*gradients):
            total = sum(gradients)
            return trees.per_agent(p.astype(total.dtype), total) * total

        return jax.tree.map(mean, *parts)

    return cross_gradients.lift(inner, merge, compress)


def _weighted_sum(weight: float, cross: base.PyTree) -> base.PyTree:
    return jax.tree.map(lambda g: weight * g.sum(axis=1), cross)
