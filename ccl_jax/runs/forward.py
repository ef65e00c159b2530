"""A model's answers to images as a dataset has them: cropped and normalised, in batches."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ccl_jax import models
from ccl_jax.data import augment
from ccl_jax.runs.facts import Facts

PyTree = Any


def features_and_logits(
    model: nn.Module, facts: Facts, variables: dict[str, PyTree], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One model's features and logits; compiled once for each number of images.

    Args:
      model: A flax module, images -> (features, logits).
      facts: How the dataset is normalised.
      variables: Of one model: "params", perhaps "batch_stats".
      images: `[n, H, W, C]` pixels, of which the middle is seen.

    Returns:
      `[n, F]` and `[n, classes]` float32.
    """
    size = min(batch_size(), max(1, len(images)))
    return _forward(model, facts, size, variables, images)


def batch_size() -> int:
    """Images a forward pass: as many as a processor's caches hold, or keep an accelerator busy."""
    return 25 if jax.default_backend() == "cpu" else 500


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _forward(model: nn.Module, facts: Facts, size: int, variables: PyTree, images: jax.Array):
    params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def batch(images):
        images = augment.centre_crop(images, facts.image_shape[:2])
        images = augment.normalize(images, facts.mean, facts.std, facts.scale)
        return models.apply_eval(model, params, state, images)

    number, rest = len(images), -len(images) % size
    padded = jnp.pad(images, [(0, rest), (0, 0), (0, 0), (0, 0)])
    found = jax.lax.map(batch, padded.reshape(-1, size, *images.shape[1:]))
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[:number], found)
