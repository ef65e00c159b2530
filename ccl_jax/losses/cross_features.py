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

The losses are written for one agent and vmapped by their callers; `exchange` acts on stacks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ccl_jax.network import Round

PyTree = Any
# distance(features, target), both [..., F], -> [...]: one number a sample, a mean over features.
Distance = Callable[[jax.Array, jax.Array], jax.Array]

DISTANCES: dict[str, Distance] = {
    "mse": lambda a, b: jnp.square(a - b).mean(axis=-1),
    "l1": lambda a, b: jnp.abs(a - b).mean(axis=-1),
    "huber": lambda a, b: optax.losses.huber_loss(a, b, delta=1.0).mean(axis=-1),
    "cosine": lambda a, b: optax.losses.cosine_distance(a, b, epsilon=1e-6),
}


class Batch(NamedTuple):
    """One mini-batch, of one agent or (with a leading agents axis) of all.

    Attributes:
      images: `[batch, H, W, C]` float32, normalised.
      labels: `[batch]` int32.
      mask: `[batch]` bool, False for padding.
    """

    images: jax.Array
    labels: jax.Array
    mask: jax.Array


class CrossFeatures(NamedTuple):
    """What an agent's own features are compared with. Constants of the loss.

    Leaves lead with the agents axis outside of vmap.

    Attributes:
      neighbors: `[degree, batch, F]` float32, z_ij: the neighbours' models on the own batch.
      mask: `[degree]` bool, which rows of `neighbors` are real.
      sums: `[classes, F]` float32, sum over neighbours j of S_ji; None without the data-variant
        loss.
      counts: `[classes]` float32, sum over neighbours j of their class counts; None likewise.
    """

    neighbors: jax.Array
    mask: jax.Array
    sums: jax.Array | None
    counts: jax.Array | None


def exchange(
    network: Round,
    features_fn: Callable[[PyTree, jax.Array], jax.Array],
    models: PyTree,
    batch: Batch,
    *,
    num_classes: int,
    data_variant: bool = True,
    message: PyTree | None = None,
) -> CrossFeatures:
    """Makes the cross-features of all agents.

    Args:
      network: The round to talk through.
      features_fn: `features_fn(model, images [batch, ...]) -> [batch, F]` for one model, in
        evaluation mode.
      models: Stacked models as the neighbours receive them, before mixing.
      batch: Stacked batches of the step, augmented.
      num_classes: C.
      data_variant: Whether class sums and counts are sent back to the models' owners.
      message: What agents send so that neighbours know `models` (see `Round.cross`).

    Returns:
      Stacked `CrossFeatures`, detached.
    """
    chex.assert_rank([batch.labels, batch.mask], 2)
    z = jax.lax.stop_gradient(network.cross(features_fn, models, batch.images, message=message))
    if not data_variant:
        return CrossFeatures(z, network.mask, None, None)
    per_neighbor = jax.vmap(class_sums, in_axes=(0, None, None, None))
    sums, counts = jax.vmap(per_neighbor, in_axes=(0, 0, 0, None))(
        z, batch.labels, batch.mask, num_classes
    )
    sums = network.reply(sums, compress=True).sum(axis=1)
    counts = network.reply(counts).sum(axis=1)
    return CrossFeatures(z, network.mask, sums, counts)


def class_sums(
    features: jax.Array, labels: jax.Array, sample_mask: jax.Array, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Sums of features by class.

    Args:
      features: `[batch, F]` float.
      labels: `[batch]` int.
      sample_mask: `[batch]` bool, False for padding.
      num_classes: C.

    Returns:
      `[C, F]` sums and `[C]` counts; both 0 for a class that is not in the batch.
    """
    chex.assert_rank([features, labels, sample_mask], [2, 1, 1])
    member = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
    member = member * sample_mask.astype(features.dtype)[:, None]
    sums = jnp.einsum("bc,bf->cf", member, features, precision=jax.lax.Precision.HIGHEST)
    return sums, member.sum(axis=0)


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


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `values [batch]` where `mask [batch]`; 0 when nothing is left."""
    count = jnp.maximum(mask.sum(dtype=values.dtype), 1.0)
    return jnp.where(mask, values, 0.0).sum() / count
