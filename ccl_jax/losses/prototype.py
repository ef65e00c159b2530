"""Prototypes: features near the class means that neighbours have of their own data.

Tan et al., "FedProto: Federated Prototype Learning across Heterogeneous Clients", AAAI 2022,
arXiv:2105.00243, on a graph: my neighbours' class means take the place of the server's. A mean goes with
the exchange after the batch that it is of, and costs no forward pass.

    t_n = mean over neighbours j that have class y_n of P_j[y_n];   L = mean (z_n - t_n)^2

A sample whose class no neighbour has counts with 0. Every neighbour weighs alike, however many samples
its mean is of.
"""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from ccl_jax.losses import base
from ccl_jax.losses.base import Distance, Own
from ccl_jax.losses.needs import NeighborPrototypes


def mean_prototypes(prototypes: NeighborPrototypes) -> tuple[jax.Array, jax.Array]:
    """The mean of neighbours' class means, `[classes, F]`, and which classes have one, `[classes]`."""
    means, known = prototypes
    chex.assert_rank([means, known], [3, 2])
    neighbors = known.sum(axis=0, dtype=means.dtype)
    sums = jnp.where(known[..., None], means, 0.0).sum(axis=0)
    return sums / jnp.maximum(neighbors, 1.0)[:, None], neighbors > 0


@base.register(
    "prototype",
    needs=("neighbor_prototypes",),
    summary="towards the class means of my neighbours' own features",
    reference="Tan et al., AAAI 2022, arXiv:2105.00243",
)
def prototype_loss(own: Own, heard: Mapping[str, Any], distance: Distance) -> jax.Array:
    """The loss of one agent: a mean over samples and features."""
    chex.assert_rank([own.features, own.labels], [2, 1])
    means, known = jax.lax.stop_gradient(mean_prototypes(heard["neighbor_prototypes"]))
    distances = distance(own.features, means[own.labels])
    return base.masked_mean(jnp.where(known[own.labels], distances, 0.0), own.mask)
