"""Sharpness-aware minimization (SAM): the gradient from where the loss is higher, for any method.

Foret, Kleiner, Mobahi & Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
Generalization", ICLR 2021, arXiv:2010.01412. For one agent, with g the gradient of its whole loss at w:

    e = rho g / (||g|| + 1e-12);   the method's gradient is that at w + e, on the same batch

||g|| is one l2 norm over all tensors. The adaptive form (ASAM, Kwon et al., ICML 2021, arXiv:2102.11600)
is e = rho w^2 g / (|| |w| g || + 1e-12), elementwise. Weight decay is the method's: it acts at w, and is
no part of the ascent. What is reported of a step, and what it leaves in batch statistics, is of w.

With several local steps between exchanges this is DFedSAM (Shi et al., ICML 2023, arXiv:2302.04083).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any
# gradient(params, *data) -> (grads, aux) of one agent.
Gradient = Callable[..., tuple[PyTree, Any]]


def sharpness_aware(gradient: Gradient, rho: float, adaptive: bool = False) -> Gradient:
    """The gradient at the ascended point, with what the plain one tells beside it.

    Args:
      gradient: `gradient(params, *data) -> (grads, aux)` of one agent.
      rho: Length of the ascent, >= 0; with 0 this is `gradient` itself.
      adaptive: ASAM's form.
    """
    if rho == 0:
        return gradient

    def at_ascended(params, *data):
        grads, aux = gradient(params, *data)
        return gradient(ascend(params, grads, rho, adaptive), *data)[0], aux

    return at_ascended


def ascend(params: PyTree, grads: PyTree, rho: float, adaptive: bool = False) -> PyTree:
    """w + e of one agent; arguments as above."""
    sizes = jax.tree.map(jnp.abs, params) if adaptive else jax.tree.map(jnp.ones_like, params)
    scaled = optax.tree.mul(sizes, grads)
    length = rho / (optax.tree.norm(scaled) + 1e-12)
    return jax.tree.map(lambda w, t, s: w + length * t * s, params, sizes, scaled)
