"""What feature losses can need, and how agents come by it.

Everything here acts on stacks: leaves lead with the agents axis. What is heard is detached.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ccl_jax.losses.base import Own
from ccl_jax.network import Message, Round

PyTree = Any


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


class NeighborFeatures(NamedTuple):
    """The model-variant cross-features: my neighbours' models on my batch.

    Attributes:
      features: `[degree, batch, F]` float32, z_ij; 0 where there is no neighbour.
      mask: `[degree]` bool, which of them are real.
    """

    features: jax.Array
    mask: jax.Array


class NeighborLogits(NamedTuple):
    """What my neighbours' models say of my batch.

    Attributes:
      logits: `[degree, batch, classes]` float32; 0 where there is no neighbour.
      mask: `[degree]` bool, which of them are real.
    """

    logits: jax.Array
    mask: jax.Array


class ClassSums(NamedTuple):
    """Features summed by class: of my model on my neighbours' data, or of one batch.

    Attributes:
      sums: `[classes, F]` float32.
      counts: `[classes]` float32, of how many samples.
    """

    sums: jax.Array
    counts: jax.Array


class NeighborPrototypes(NamedTuple):
    """My neighbours' class means, of their own features on their own last batch.

    Attributes:
      means: `[degree, classes, F]` float32.
      known: `[degree, classes]` bool, which neighbour had samples of which class.
    """

    means: jax.Array
    known: jax.Array


class Need(NamedTuple):
    """What having it costs.

    Attributes:
      text: What it is, in words.
      foreign: Whether it takes neighbours' models: one forward pass for each, without gradient, which
        all such needs share.
      sends: What goes to each neighbour for it in a step, beside models: S, class sums and counts.
      own: Whether it takes another model of the agent's own: one forward pass, without gradient.
      keeps: What an agent keeps of a step for those after it: S, or with local steps a model P.
    """

    text: str
    foreign: bool
    sends: str
    own: bool = False
    keeps: str = ""


NEEDS = {
    "neighbor_features": Need("neighbours' models on my data", True, ""),
    "neighbor_logits": Need("what neighbours' models say of my data", True, ""),
    "class_sums": Need("class sums of my model on my neighbours' data", True, "S"),
    "neighbor_prototypes": Need(
        "class means of my neighbours' own features", False, "S", keeps="S"
    ),
    "previous_features": Need("my model before it was mixed, on my data", False, "", True, "P"),
    "mixed_features": Need("my model as it was last mixed, on my data", False, "", True, "P"),
}


def foreign(needs: Iterable[str]) -> bool:
    """Whether any of the needs takes neighbours' models."""
    return any(NEEDS[need].foreign for need in needs)


def start(
    needs: Iterable[str],
    agents: int,
    num_classes: int,
    features: jax.ShapeDtypeStruct,
    models: PyTree = None,
) -> dict[str, PyTree]:
    """What agents keep from one step to the next, before the first.

    Args:
      needs: Keys of `NEEDS`.
      agents: Number of agents.
      num_classes: C.
      features: One agent's features, `[batch, F]`.
      models: Where agents work alone for some steps between exchanges, the models that all start from,
        leaves `[agents, ...]`; None where they talk in every step.
    """
    kept: dict[str, PyTree] = {}
    if "neighbor_prototypes" in needs:
        zeros = lambda *shape: jnp.zeros((agents, num_classes, *shape), features.dtype)
        kept["prototypes"] = ClassSums(zeros(features.shape[-1]), zeros())
    own = own_models(needs)
    if models is not None and own:
        kept["models"] = {need: jax.tree.map(jnp.copy, models) for need in own}
    return kept


def own_models(needs: Iterable[str]) -> list[str]:
    """Those of the needs that take another model of the agent's own, in the order of `NEEDS`."""
    return [need for need, about in NEEDS.items() if about.own and need in needs]


def keep(needs: Iterable[str], own: Own, num_classes: int) -> dict[str, ClassSums]:
    """What one agent keeps of a step for its neighbours in the next.

    Args:
      needs: Keys of `NEEDS`.
      own: Its forward pass.
      num_classes: C.
    """
    if "neighbor_prototypes" not in needs:
        return {}
    return {"prototypes": class_sums(own.features, own.labels, own.mask, num_classes)}


def collect(
    needs: Iterable[str],
    talk: Round,
    forward: Callable[[PyTree, jax.Array], tuple[jax.Array, jax.Array]],
    models: Message | None,
    batch: Batch,
    num_classes: int,
    kept: dict[str, PyTree] | None = None,
    heard: dict[str, Any] | None = None,
    own: dict[str, PyTree] | None = None,
) -> dict[str, Any]:
    """Hears what losses need.

    Args:
      needs: Keys of `NEEDS`.
      talk: The round to talk through.
      forward: `forward(model, images [batch, ...]) -> (features [batch, F], logits [batch, C])` for
        one model, in evaluation mode.
      models: The models as neighbours know them, before mixing; None where no need takes them.
      batch: Stacked batches of the step, augmented.
      num_classes: C.
      kept: What agents have kept from the step before, if a need asks for it; see `start`.
      heard: What has been heard in this step already, if anything.
      own: By need, the other models of the agents' own that needs take, leaves `[agents, ...]`.

    Returns:
      `heard`, and for each need its NamedTuple of this module, or its features `[agents, batch, F]`,
      stacked and detached.
    """
    chex.assert_rank([batch.labels, batch.mask], 2)
    heard = dict(heard or {})
    features = lambda model, images: forward(model, images)[0]
    if "neighbor_logits" in needs:
        z, logits = talk.cross(forward, models, batch.images, per_sample=True)
        heard["neighbor_features"] = NeighborFeatures(z, talk.mask)
        heard["neighbor_logits"] = NeighborLogits(logits, talk.mask)
    elif foreign(needs) and "neighbor_features" not in heard:
        z = talk.cross(features, models, batch.images, per_sample=True)
        heard["neighbor_features"] = NeighborFeatures(z, talk.mask)
    for need in own_models(needs):
        heard[need] = jax.vmap(features)(own[need], batch.images)
    if "class_sums" in needs:
        # What a neighbour makes of its data with my model comes back as sums, not as data.
        per_neighbor = jax.vmap(class_sums, in_axes=(0, None, None, None))
        sums, counts = jax.vmap(per_neighbor, in_axes=(0, 0, 0, None))(
            heard["neighbor_features"].features, batch.labels, batch.mask, num_classes
        )
        sums = talk.reply("class sums", sums).sum(axis=1)
        # Noise does not hide that counts are whole.
        counts = jnp.round(talk.reply("class counts", counts, compress=False)).sum(axis=1)
        heard["class_sums"] = ClassSums(sums, counts)
    if "neighbor_prototypes" in needs:
        sums, counts = talk.gather(talk.send("prototypes", kept["prototypes"], compress=False))
        counts = jnp.round(counts)
        heard["neighbor_prototypes"] = NeighborPrototypes(class_means(sums, counts), counts > 0)
    return jax.lax.stop_gradient(heard)


def class_sums(
    features: jax.Array, labels: jax.Array, sample_mask: jax.Array, num_classes: int
) -> ClassSums:
    """Sums of features by class; both sums and counts are 0 for a class that is not in the batch.

    Args:
      features: `[batch, F]` float.
      labels: `[batch]` int.
      sample_mask: `[batch]` bool, False for padding.
      num_classes: C.
    """
    chex.assert_rank([features, labels, sample_mask], [2, 1, 1])
    member = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
    member = member * sample_mask.astype(features.dtype)[:, None]
    sums = jnp.einsum("bc,bf->cf", member, features, precision=jax.lax.Precision.HIGHEST)
    return ClassSums(sums, member.sum(axis=0))


def class_means(sums: jax.Array, counts: jax.Array) -> jax.Array:
    """Means by class, `[..., classes, F]`, of sums and counts `[..., classes]`; 0 for none."""
    return sums / jnp.maximum(counts, 1.0)[..., None]
