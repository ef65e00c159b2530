"""A tiny model and tiny data for tests of training: quick to compile, real in every other way."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ccl_jax.losses import Batch

CLASSES = 4
IMAGE = (3, 3, 1)


class TinyModel(nn.Module):
    """A user's own module: no `train` argument, returns (features, logits)."""

    @nn.compact
    def __call__(self, images):
        x = images.reshape(images.shape[0], -1)
        features = nn.tanh(nn.Dense(6)(x))
        return features, nn.Dense(CLASSES)(features)


def batch(
    agents: int,
    size: int = 5,
    seed: int = 0,
    padded: int = 0,
    image: tuple[int, ...] = IMAGE,
) -> Batch:
    """Random images and labels; the last `padded` samples of agent 0 are padding."""
    rng = np.random.default_rng(seed)
    mask = np.ones((agents, size), bool)
    mask[0, size - padded :] = False
    return Batch(
        jnp.asarray(rng.normal(size=(agents, size, *image)), jnp.float32),
        jnp.asarray(rng.integers(0, CLASSES, (agents, size)), jnp.int32),
        jnp.asarray(mask),
    )


def spread(params, scale: float = 0.3, seed: int = 1):
    """Moves every agent's parameters somewhere else."""
    rng = np.random.default_rng(seed)
    move = lambda x: x + jnp.asarray(scale * rng.normal(size=x.shape), x.dtype)
    return jax.tree.map(move, params)
