"""CHOCO-SGD: gossip over copies of the models that neighbours renew by compressed differences.

Koloskova et al., "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed
Communication", ICML 2019, arXiv:1902.00340; with momentum Koloskova et al., ICLR 2020, arXiv:1907.09356.

    x_i <- x_i - eta d_i;   xh_i <- xh_i + C(x_i - xh_i);   x_i <- x_i + gamma [(W - I) xh]_i

That is the gossip of `dsgd` over a network that compresses (`compression`) and keeps xh; so every other
method that gossips can be had with it, too. The published codes take the gradient after the mix, as
above, or at the x that was sent and is not mixed yet (gradient_at="unmixed"). Without compression this
is DSGD with a gossip rate.
"""

from ccl_jax.algorithms import base, dsgd


@base.register(
    "choco-sgd",
    summary="DSGD over compressed differences: give compression and a small gossip rate",
    reference="Koloskova et al., ICML 2019, arXiv:1902.00340",
    capabilities=base.GOSSIP,
)
def choco_sgd(
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
    gradient_at: str = "mixed",
) -> base.Algorithm:
    """CHOCO-SGD; arguments as `dsgd.dsgd`."""
    return dsgd.dsgd(
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        gossip_rate=gossip_rate,
        gradient_at=gradient_at,
    )
