"""Cross-gradient aggregation: CGA, and CompCGA with compressed cross-gradients.

Esfandiari et al., "Cross-Gradient Aggregation for Decentralized Learning from Non-IID Data", ICML 2021,
arXiv:2103.02051.

Each agent looks for the direction nearest its own gradient that does not work against its neighbours',
by a quadratic programme for every parameter tensor. With r0 = w_ii o_i and the rows R_k = w_ik G_ik
(the own model's gradient on neighbour k's data):

    v = argmin over v >= margin of 1/2 v^T (R R^T + ridge I) v + (R r0)^T v;   G_i = r0 + R^T v

Weights are inside, so G is about 1 / (degree + 1) times a gradient. In the published code gradients are
taken at the unmixed x; the port by Aketi takes the own one at the mixed point.
"""

import jax
import jax.numpy as jnp

from ccl_jax import compression
from ccl_jax.algorithms import base, cross_gradients, dsgd

_REFERENCE = "Esfandiari et al., ICML 2021, arXiv:2103.02051"


@base.register(
    "cga",
    summary="cross-gradients joined by a quadratic programme",
    reference=_REFERENCE,
    graph="undirected",
    check=(base.undirected,),
    compress=False,
)
@base.register(
    "comp-cga",
    summary="CGA with sign compression and error feedback",
    reference=_REFERENCE,
    graph="undirected",
    check=(base.undirected,),
    compress=True,
)
def cga(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    gossip_rate: float = 1.0,
    gradient_at: str = "unmixed",
    margin: float = 0.5,
    compress: bool = False,
) -> base.Algorithm:
    """CGA.

    Args:
      momentum: beta in [0, 1).
      nesterov: Nesterov's form of it.
      weight_decay: lam; the published code has none.
      gossip_rate: gamma in (0, 1].
      gradient_at: Where the own gradient is taken: "unmixed" or "mixed".
      margin: Lower bound of v.
      compress: Sign compression with error feedback.
    """
    inner = dsgd.dsgd(
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        gossip_rate=gossip_rate,
        gradient_at=gradient_at,
    )

    def merge(own, cross, network):
        size = compression.SIGN.message_bytes(cross, 2) if compress else None
        received = network.reply(cross, message_bytes=size)
        flat = lambda x, lead: x.reshape(*x.shape[:lead], -1)
        r0 = [network.own_weights[:, None] * flat(g, 1) for g in jax.tree.leaves(own)]
        rows = [
            network.neighbor_weights[:, :, None] * flat(g, 2) for g in jax.tree.leaves(received)
        ]
        # All tensors of all agents are one batch of small programmes.
        v = jax.vmap(jax.vmap(lambda k, b: solve(k, b, margin)))(
            jnp.stack([_einsum("adx,aex->ade", r, r) for r in rows]),
            jnp.stack([_einsum("adx,ax->ad", r, x) for r, x in zip(rows, r0, strict=True)]),
        )
        merged = [
            (x + _einsum("ad,adx->ax", u, r)).reshape(g.shape)
            for u, r, x, g in zip(v, rows, r0, jax.tree.leaves(own), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(own), merged)

    return cross_gradients.lift(inner, merge, compress)


def solve(gram: jax.Array, linear: jax.Array, margin: float, sweeps: int = 200) -> jax.Array:
    """argmin over v >= margin of 1/2 v^T gram v + linear^T v, by coordinate descent.

    Every coordinate in turn goes to its best value, `sweeps` times. That never makes the objective
    worse, needs no factorisation, and is right for singular matrices too, where v is not unique but
    R^T v is.

    Args:
      gram: `[d, d]` symmetric, positive semidefinite.
      linear: `[d]`.
      margin: Lower bound of every coordinate.
      sweeps: Passes over the coordinates.

    Returns:
      `[d]` v.
    """
    size = linear.shape[0]
    diagonal = jnp.diagonal(gram)

    def one(i, v):
        k = i % size
        best = v[k] - (gram[k] @ v + linear[k]) / jnp.where(diagonal[k] > 0, diagonal[k], 1.0)
        # A zero row (padding, or a neighbour without gradient) does not matter: it stays put.
        return v.at[k].set(jnp.where(diagonal[k] > 0, jnp.maximum(best, margin), v[k]))

    return jax.lax.fori_loop(0, sweeps * size, one, jnp.full(size, margin, linear.dtype))


def _einsum(spec: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(spec, *arrays, precision=jax.lax.Precision.HIGHEST)
