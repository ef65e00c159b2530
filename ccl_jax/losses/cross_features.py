"""The cross-feature contrastive loss (CCL).

Aketi & Roy, "Cross-feature Contrastive Loss for Decentralized Deep Learning on Heterogeneous Data",
WACV 2024, arXiv:2310.15890.

Agents hold different data, so their models drift apart in what their features mean. Two losses pull
them together. With phi(x; B) the features of model x on batch B, x_i the parameters of agent i and
N_i its neighbours:

  model-variant cross-features   z_ij = phi(x_j; B_i)         a neighbour's model on my data
  data-variant cross-features    phi(x_i; B_j)                my model on a neighbour's data

  L_mv = sum over j in N_i of  mean (phi(x_i; B_i) - z_ij)^2
  L_dv = mean (phi(x_i; B_i) - zbar_i[y])^2

where zbar_i[c] is the mean feature of class c under *my* model over my own and my neighbours' data.
An agent does not see its neighbours' data: it gets the class sums S_ji[c] = sum of phi(x_i; B_j) over
the samples of class c, and their counts, computed by the neighbour j that has received x_i.
Cross-features are constants: no gradient flows through z_ij, zbar_i or a neighbour's model.
"""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from ccl_jax.losses import base
from ccl_jax.losses.base import DISTANCES, Distance, Own, masked_mean
from ccl_jax.losses.needs import class_sums

_REFERENCE = "Aketi & Roy, WACV 2024, arXiv:2310.15890"


def model_variant_loss(
    features: jax.Array,
    neighbors: jax.Array,
    neighbor_mask: jax.Array,
    sample_mask: jax.Array,
    distance: Distance = DISTANCES["mse"],
) -> jax.Array:
    """L_mv: how far my features are from those that my neighbours' models give on my data.

    Args:
      features: `[batch, F]` own features; the gradient flows through these only.
      neighbors: `[degree, batch, F]` z_ij.
      neighbor_mask: `[degree]` bool.
      sample_mask: `[batch]` bool.
      distance: One of `DISTANCES`, or a function like them.

    Returns:
      Scalar: a *sum* over neighbours of means over samples and features.

    Reference: arXiv:2310.15890, equation of L_mv.
    """
    chex.assert_rank([features, neighbors, neighbor_mask, sample_mask], [2, 3, 1, 1])
    neighbors = jax.lax.stop_gradient(neighbors)
    per_neighbor = jax.vmap(lambda z: masked_mean(distance(features, z), sample_mask))(neighbors)
    return jnp.where(neighbor_mask, per_neighbor, 0.0).sum()


def data_variant_loss(
    features: jax.Array,
    labels: jax.Array,
    sums: jax.Array,
    counts: jax.Array,
    sample_mask: jax.Array,
    distance: Distance = DISTANCES["mse"],
) -> jax.Array:
    """L_dv: how far my features are from the class means of my model over the neighbourhood.

    Args:
      features: `[batch, F]` own features; the gradient flows through these only. They also count
        in the class means, detached.
      labels: `[batch]` int.
      sums: `[C, F]` class sums that the neighbours sent back.
      counts: `[C]` class counts that they sent back.
      sample_mask: `[batch]` bool.
      distance: One of `DISTANCES`, or a function like them.

    Returns:
      Scalar: a mean over samples and features.

    Reference: arXiv:2310.15890, equation of L_dv.
    """
    chex.assert_rank([features, labels, sums, counts, sample_mask], [2, 1, 2, 1, 1])
    own_sums, own_counts = class_sums(features, labels, sample_mask, counts.shape[0])
    # Every label in the batch is counted at least once, by the own sample; other classes stay 0.
    means = (own_sums + sums) / jnp.maximum(own_counts + counts, 1.0)[:, None]
    target = jax.lax.stop_gradient(means)[labels]
    return masked_mean(distance(features, target), sample_mask)


@base.register(
    "model_variant",
    needs=("neighbor_features",),
    summary="towards the features that my neighbours' models give on my data",
    reference=_REFERENCE,
)
def _model_variant(own: Own, heard: Mapping[str, Any], distance: Distance) -> jax.Array:
    z = heard["neighbor_features"]
    return model_variant_loss(own.features, z.features, z.mask, own.mask, distance)


@base.register(
    "data_variant",
    needs=("class_sums",),
    summary="towards the class means of my model over my neighbours' data and mine",
    reference=_REFERENCE,
)
def _data_variant(own: Own, heard: Mapping[str, Any], distance: Distance) -> jax.Array:
    sums, counts = heard["class_sums"]
    return data_variant_loss(own.features, own.labels, sums, counts, own.mask, distance)
