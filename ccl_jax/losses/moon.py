"""MOON: features like those of the mixed model, and unlike those of the own model before the mix.

Li, He & Song, "Model-Contrastive Federated Learning", CVPR 2021, arXiv:2103.16257. With z the features
of a sample, z+ those of the positive, z- those of the negative, and cos with norms of at least 1e-8:

    s+ = cos(z, z+) / tau;   s- = cos(z, z-) / tau
    L = mean over samples of  -log( exp(s+) / (exp(s+) + exp(s-)) )

Published, between exchanges with a server: the positive is the model as it came from there, the negative
the own model that was sent there last. So it is here with several local steps: the positive is the own
model as it was last mixed, the negative the one that went into that mix. With an exchange in every step
the gradient is taken at the mixed model itself, whose features as positive would be the own ones; there
the positive is the mean of the neighbours' cross-features z_ij, and the negative is the own model before
mixing. Who hears nobody in such a step has loss 0.

Features are those of all losses here, the input of the last linear layer. There is no projection head:
the published code has one of two layers before the classifier. Published temperature: 0.5.
"""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from ccl_jax.losses import base
from ccl_jax.losses.base import Distance, Own

_SMALLEST_NORM = 1e-8  # of the published code


def moon_loss(
    features: jax.Array,
    positive: jax.Array,
    negatives: jax.Array,
    sample_mask: jax.Array,
    temperature: float = 0.5,
) -> jax.Array:
    """The loss of one agent.

    Args:
      features: `[batch, F]` own features; the gradient flows through these only.
      positive: `[batch, F]`.
      negatives: `[P, batch, F]`; one, or those of several earlier models.
      sample_mask: `[batch]` bool.
      temperature: tau > 0.

    Returns:
      Scalar: a mean over samples.

    Reference: arXiv:2103.16257, equation 3.
    """
    chex.assert_rank([features, positive, negatives, sample_mask], [2, 2, 3, 1])
    others = jax.lax.stop_gradient(jnp.concatenate([positive[None], negatives]))
    scores = jax.vmap(_cosine, in_axes=(None, 0))(features, others) / temperature
    return base.masked_mean(jax.nn.logsumexp(scores, axis=0) - scores[0], sample_mask)


@base.register(
    "moon",
    needs=("neighbor_features", "previous_features"),
    apart=("mixed_features", "previous_features"),
    summary="towards my neighbours' features (or the mixed model's), away from my own before the mix",
    reference="Li et al., CVPR 2021, arXiv:2103.16257",
)
def _moon(
    own: Own, heard: Mapping[str, Any], distance: Distance, *, temperature: float = 0.5
) -> jax.Array:
    negatives = heard["previous_features"][None]
    if "mixed_features" in heard:
        return moon_loss(own.features, heard["mixed_features"], negatives, own.mask, temperature)
    z, real = heard["neighbor_features"]
    neighbors = real.sum(dtype=z.dtype)
    positive = jnp.where(real[:, None, None], z, 0.0).sum(axis=0) / jnp.maximum(neighbors, 1.0)
    loss = moon_loss(own.features, positive, negatives, own.mask, temperature)
    return jnp.where(neighbors > 0, loss, 0.0)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Of the rows of two `[batch, F]`; where a norm is at its bound, it is a constant."""
    norm = lambda x: jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1), _SMALLEST_NORM**2))
    return (a * b).sum(axis=-1) / (norm(a) * norm(b))
