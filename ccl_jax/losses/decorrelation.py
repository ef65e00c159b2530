"""FedDecorr: features whose dimensions do not move together.

Shi et al., "Towards Understanding and Mitigating Dimensional Collapse in Heterogeneous Federated
Learning", ICLR 2023, arXiv:2210.00226. With x the N x C features of a batch:

    u = x - column mean;   y = u / sqrt(column variance + 1e-8)  (variance over N - 1);   K = y^T y
    L = 1 / N * mean over the C (C - 1) entries of K^2 off the diagonal;   0 for N = 1

It looks at the agent's own features only, and sends nothing. Published weight: 0.1.
"""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from ccl_jax.losses import base
from ccl_jax.losses.base import Distance, Own


@base.register(
    "decorrelation",
    summary="against features that are correlated",
    reference="Shi et al., ICLR 2023, arXiv:2210.00226",
)
def decorrelation_loss(own: Own, heard: Mapping[str, Any], distance: Distance) -> jax.Array:
    """The loss of one agent, over the samples of its batch that are no padding."""
    x, mask = own.features, own.mask[:, None]
    chex.assert_rank([x, mask], 2)
    samples, dimensions = jnp.maximum(own.mask.sum(dtype=x.dtype), 1.0), x.shape[1]
    centred = jnp.where(mask, x - jnp.where(mask, x, 0.0).sum(axis=0, keepdims=True) / samples, 0.0)
    variance = jnp.square(centred).sum(axis=0, keepdims=True) / jnp.maximum(samples - 1, 1.0)
    y = centred / jnp.sqrt(variance + 1e-8)
    k = jnp.einsum("nc,nd->cd", y, y, precision=jax.lax.Precision.HIGHEST)
    off = jnp.square(k) * (1 - jnp.eye(dimensions, dtype=x.dtype))
    return off.sum() / (max(1, dimensions * (dimensions - 1)) * samples)
