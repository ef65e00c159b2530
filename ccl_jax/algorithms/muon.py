"""Decentralized Muon: steps of orthogonalised momentum, with and without tracking.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) around the gossip of `dsgd`,
and DeMuon, He et al., arXiv:2510.01377, which tracks the mean momentum of all agents:

    muon:    d_i = D(momentum(u_i));   x_i <- xt_i - eta d_i,   u_i = g_i(xt_i) + lam xt_i
    demuon:  m'_i = beta m_i + (1 - beta) u_i;   y <- W (y + m' - m);   x_i <- xt_i - eta D(y_i)

D acts tensor by tensor. A matrix is every tensor with two axes or more: [h, w, in, out] of a
convolution is flattened to [h w in, out]. A matrix G = U S V^T becomes about U V^T, by Newton-Schulz
or exactly. All other tensors (biases, scales of norms) are divided by their own l2 norm, as DeMuon
does; the first Muon takes Adam for them. No factor for the shape is applied. The learning rate is so
the size of the step: rates of SGD do not carry over.

DeMuon talks twice a step, models before the gradient and trackers after it: twice the bytes of DSGD.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ccl_jax import trees
from ccl_jax.algorithms import base, dsgd, graph_checks

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_EPS = 1e-7
_STEPS = ("newton-schulz", "polar", "normalized", "plain")


def newton_schulz(g: jax.Array, steps: int = 5) -> jax.Array:
    """The quintic Newton-Schulz iteration: singular values of g move to about 1 (0.68 to 1.14).

    Args:
      g: `[rows, columns]`.
      steps: Iterations.

    Returns:
      `[rows, columns]`, in the dtype of g.
    """
    a, b, c = _COEFFICIENTS
    rows, columns = g.shape
    x = g / (jnp.linalg.norm(g) + _EPS)
    x = x.T if rows > columns else x
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if rows > columns else x


def polar(g: jax.Array) -> jax.Array:
    """U V^T of g = U S V^T `[rows, columns]`."""
    u, _, vt = jnp.linalg.svd(g, full_matrices=False)
    return u @ vt


def direction(step: str, tree: Any, newton_schulz_steps: int = 5) -> Any:
    """D of one agent's tensors.

    Args:
      step: "newton-schulz", "polar" (exact), "normalized" (one l2 norm over all tensors) or "plain".
      tree: Leaves of one agent.
      newton_schulz_steps: Iterations of Newton-Schulz.
    """
    if step == "plain":
        return tree
    if step == "normalized":
        return _divided(tree, optax.tree.norm(tree))
    iterated = functools.partial(newton_schulz, steps=newton_schulz_steps)
    orthogonal = polar if step == "polar" else iterated

    def each(x: jax.Array) -> jax.Array:
        if x.ndim < 2:
            return _divided(x, jnp.linalg.norm(x))
        return orthogonal(x.reshape(-1, x.shape[-1])).reshape(x.shape)

    return jax.tree.map(each, tree)


def _divided(tree: Any, norm: jax.Array) -> Any:
    return jax.tree.map(lambda x: x / jnp.maximum(norm, 1e-12).astype(x.dtype), tree)


@base.register(
    "muon",
    summary="decentralized SGD with steps of orthogonalised local momentum",
    reference="Jordan et al., 2024, kellerjordan.github.io/posts/muon",
    capabilities=base.GOSSIP,
)
def muon(
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    gossip_rate: base.GossipRate = 1.0,
    newton_schulz_steps: int = 5,
) -> base.Algorithm:
    """Muon with gossip; arguments as `dsgd.dsgd`, and the iterations of Newton-Schulz."""
    sgd = base.sgd_direction(momentum, nesterov, weight_decay)

    def update(grads, state, params=None):
        d, state = sgd.update(grads, state, params)
        return jax.vmap(lambda x: direction("newton-schulz", x, newton_schulz_steps))(d), state

    return dsgd.local_steps(optax.GradientTransformation(sgd.init, update), gossip_rate)


class DemuonState(NamedTuple):
    """State of DeMuon.

    Attributes:
      tracker: y, like params.
      momentum: m, like params.
    """

    tracker: base.PyTree
    momentum: base.PyTree


@base.register(
    "demuon",
    summary="Muon with tracking of the mean momentum",
    reference="He et al., arXiv:2510.01377",
    capabilities=base.TRACKING,
    **graph_checks.DOUBLY_STOCHASTIC,
)
def demuon(
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    step: str = "newton-schulz",
    newton_schulz_steps: int = 5,
) -> base.Algorithm:
    """DeMuon.

    Args:
      momentum: beta in [0, 1), as a moving average.
      weight_decay: lam, added to the gradient.
      step: "newton-schulz", "polar", "normalized" (with momentum GT-NSGDm) or "plain" (without
        momentum GT-DSGD).
      newton_schulz_steps: Iterations of Newton-Schulz; at least 1.

    Raises:
      ValueError: `step` is none of these.
    """
    base.choice("step", step, _STEPS)

    def init(params, talk):
        zeros = optax.tree.zeros_like
        return DemuonState(zeros(params), zeros(params))

    def communicate(params, state, talk, lr):
        message = talk.send("params", params)
        return talk.mix(message), state, message

    def update(grads, eval_params, state, talk, lr):
        u = trees.axpy(weight_decay, eval_params, grads)
        m = trees.moving_average(momentum, state.momentum, u)
        y = jax.tree.map(lambda y, new, old: y + new - old, state.tracker, m, state.momentum)
        y = talk.mix(talk.send("tracker", y, alike=False))
        d = jax.vmap(lambda x: direction(step, x, newton_schulz_steps))(y)
        return trees.axpy(-lr, d, eval_params), DemuonState(y, m)

    return base.Algorithm(init, communicate, update)
