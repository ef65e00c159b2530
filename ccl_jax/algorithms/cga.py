"""Cross-gradient aggregation: CGA, and CompCGA with compressed cross-gradients.

Esfandiari et al., "Cross-Gradient Aggregation for Decentralized Learning from Non-IID Data", ICML 2021,
arXiv:2103.02051.

Each agent looks for the direction nearest its own gradient that does not work against its neighbours',
by a quadratic programme for every parameter tensor. With r0 = w_ii o_i and the rows R_k = w_ik G_ik
(the own model's gradient on neighbour k's data):

    v = argmin over v >= margin of 1/2 v^T R R^T v + (R r0)^T v;   G_i = r0 + R^T v

Weights are inside, so G is about 1 / (degree + 1) times a gradient. In the published code gradients are
taken at the unmixed x; the port by Aketi takes the own one at the mixed point.
"""

import jax
import jax.numpy as jnp

from ccl_jax import trees
from ccl_jax.algorithms import base, cross_gradients, dsgd, graph_checks
from ccl_jax.network import compression

_REFERENCE = "Esfandiari et al., ICML 2021, arXiv:2103.02051"


@base.register(
    "cga",
    summary="cross-gradients joined by a quadratic programme",
    reference=_REFERENCE,
    capabilities=base.Capabilities(uncompressed=cross_gradients.UNCOMPRESSED, float64=True),
    graph="undirected",
    check=(graph_checks.undirected,),
    compress=False,
)
@base.register(
    "comp-cga",
    summary="CGA with sign compression and error feedback",
    reference=_REFERENCE,
    capabilities=base.Capabilities(
        lossless=base.EVERY_STEP.lossless,
        noiseless=cross_gradients.NOISELESS,
        float64=True,
    ),
    graph="static, undirected",
    check=(graph_checks.static, graph_checks.undirected),
    compress=True,
)
def cga(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    gossip_rate: base.GossipRate = 1.0,
    gradient_at: str = "unmixed",
    margin: float = 0.5,
    compress: bool = False,
) -> base.Algorithm:
    """CGA; other arguments as `dsgd.dsgd`.

    Args:
      weight_decay: lam; the published code has none.
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

    def merge(own, cross, talk):
        size = compression.SIGN.message_bytes(cross, 2) if compress else None
        received = talk.reply("cross-gradients", cross, message_bytes=size)
        wide = trees.sum_type(own)
        weights = [w.astype(wide) for w in (talk.own_weights, talk.neighbor_weights)]

        def weigh(w, gradient):
            return w[..., None] * gradient.reshape(*w.shape, -1).astype(wide)

        r0 = [weigh(weights[0], g) for g in jax.tree.leaves(own)]
        rows = [weigh(weights[1], g) for g in jax.tree.leaves(received)]
        merged = [
            g.reshape(leaf.shape).astype(leaf.dtype)
            for g, leaf in zip(directions(r0, rows, margin), jax.tree.leaves(own), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(own), merged)

    return cross_gradients.lift(inner, merge, compress)


def directions(r0: list[jax.Array], rows: list[jax.Array], margin: float) -> list[jax.Array]:
    """r0 + R^T v of every tensor of every agent, for the v that `solve` finds.

    In float64, also where nothing else is: R R^T squares the condition number of R, and where rows
    nearly depend on each other, v is large and R^T v a small difference.

    Args:
      r0: `[agents, size]` of each tensor.
      rows: `[agents, degree, size]` of each tensor.
      margin: Lower bound of v.

    Returns:
      `[agents, size]` of each tensor, in the type of its r0.
    """
    with jax.enable_x64(True):
        kinds = [x.dtype for x in r0]
        r0, rows = ([x.astype(jnp.float64) for x in xs] for xs in (r0, rows))
        # All tensors of all agents are one batch of small programmes.
        gram = jnp.stack([jnp.einsum("adx,aex->ade", r, r) for r in rows])
        linear = jnp.stack([jnp.einsum("adx,ax->ad", r, x) for r, x in zip(rows, r0, strict=True)])
        v = jax.vmap(jax.vmap(lambda k, b: solve(k, b, margin)))(gram, linear)
        found = [x + jnp.einsum("ad,adx->ax", u, r) for x, u, r in zip(r0, v, rows, strict=True)]
        return [g.astype(kind) for g, kind in zip(found, kinds, strict=True)]


def solve(gram: jax.Array, linear: jax.Array, margin: float) -> jax.Array:
    """argmin over v >= margin of 1/2 v^T gram v + linear^T v, by an active-set method.

    Lawson & Hanson, "Solving Least Squares Problems", 1974, chapter 23, for u = v - margin >= 0: the
    coordinate that helps most becomes free, the free ones go to their joint optimum, and those that
    would leave the bound on the wrong side on the way are fixed again. A row that depends on free ones
    never becomes free, so singular matrices need no care (v is not unique then, but R^T v is).

    Args:
      gram: `[d, d]` symmetric, positive semidefinite.
      linear: `[d]`.
      margin: Lower bound of every coordinate.

    Returns:
      `[d]` v.
    """
    size = linear.shape[0]
    diagonal = jnp.diagonal(gram)
    # In units in which every row has length 1; a zero row (padding, or a neighbour without gradient)
    # does not matter and stays at the margin.
    scale = jnp.where(diagonal > 0, jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 1.0)
    gram = gram / (scale[:, None] * scale[None, :])
    target = -linear / scale - gram @ (margin * scale)
    # Below this, squared lengths and slopes are roundoff.
    noise = 1e3 * jnp.finfo(gram.dtype).eps

    def unfinished(state):
        _, _, done, count = state
        # Every set of free coordinates is left for a better one; more rounds are only roundoff.
        return ~done & (count < 6 * size)

    def advance(state):
        u, free, _, count = state
        # Fixed coordinates get a row of the identity.
        both = free[:, None] & free[None, :]
        inverse = _invert(jnp.where(both, gram, 0.0) + jnp.diag(jnp.where(free, 0.0, 1.0)))
        best = inverse @ jnp.where(free, target, 0.0)
        blocked = free & (best <= 0)
        gap = jnp.where(blocked, u - best, 1.0)
        reach = jnp.where(blocked & (gap > 0), u / gap, jnp.where(blocked, 0.0, 1.0)).min()
        moved = jnp.where(free, u + reach * (best - u), 0.0)
        hit = blocked & (u <= reach * gap)
        stuck = blocked.any()

        # What of each row, and of its slope, the free ones cannot make.
        on_free = jnp.where(free[:, None], gram, 0.0)
        length = 1.0 - ((inverse @ on_free) * on_free).sum(0)
        descent = target - gram @ best
        worth = noise * (1.0 + jnp.abs(gram) @ jnp.abs(best))
        candidates = jnp.where(free | (length <= noise) | (descent <= worth), 0.0, descent)
        largest = (candidates > 0) & (candidates == candidates.max())
        enters = largest & (jnp.cumsum(largest, dtype=jnp.int32) == 1)
        return (
            jnp.where(stuck, jnp.where(hit, 0.0, moved), best),
            jnp.where(stuck, free & ~hit, free | enters),
            ~stuck & ~enters.any(),
            count + 1,
        )

    start = (jnp.zeros_like(linear), jnp.zeros(size, bool), jnp.bool_(False), jnp.int32(0))
    u = jax.lax.while_loop(unfinished, advance, start)[0]
    return margin + u / scale


def _invert(matrix: jax.Array) -> jax.Array:
    """Inverse of a small positive definite matrix `[d, d]` by Gauss-Jordan elimination.

    That is `d` rank-one updates: compiled and batched far quicker than LAPACK's factorisations are.
    """

    def eliminate(k, m):
        row, column, pivot = m[k], m[:, k], m[k, k]
        m = m - column[:, None] * row[None, :] / pivot
        return m.at[k].set(row / pivot).at[:, k].set(-column / pivot).at[k, k].set(1 / pivot)

    return jax.lax.fori_loop(0, matrix.shape[0], eliminate, matrix)
