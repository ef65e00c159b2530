"""The mean squared norm of features: the plain regulariser to hold against losses that compare features.

Nguyen, Torr & Lim, "FedSR: A Simple and Effective Domain Generalization Method for Federated Learning",
NeurIPS 2022, where it is the term L2R:

    L = mean over samples of ||z_n||^2

as the paper writes it; its code takes the norm itself, with weight 0.01. It is a sum over features, not
a mean. The loss looks at the agent's own features only, and sends nothing.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ccl_jax.losses import base
from ccl_jax.losses.base import Distance, Own


@base.register(
    "feature_norm",
    summary="small features",
    reference="Nguyen et al. (FedSR), NeurIPS 2022",
)
def feature_norm_loss(own: Own, heard: Mapping[str, Any], distance: Distance) -> jax.Array:
    """The loss of one agent: a mean over samples."""
    return base.masked_mean(jnp.square(own.features).sum(axis=-1), own.mask)
