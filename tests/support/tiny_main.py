"""`python tiny_main.py FLAGS`: experiments.digits with a model that compiles in a second."""

import sys
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from ccl_jax import models
from experiments import cli, digits


class Mlp(nn.Module):
    """One hidden layer."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        features = nn.tanh(nn.Dense(6)(images.reshape(images.shape[0], -1)))
        return features, nn.Dense(self.num_classes)(features)


class Slow(nn.Module):
    """Compiles for a minute: XLA unrolls every one of its many sorts."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        features = nn.tanh(nn.Dense(6)(images.reshape(images.shape[0], -1)))
        for k in range(400):
            features = jnp.sort(jnp.sin(features * k), axis=-1)
        return features, nn.Dense(self.num_classes)(features)


models.MODELS["slow"] = lambda num_classes, dtype: Slow(num_classes)
models.MODELS["mlp"] = lambda num_classes, dtype: Mlp(num_classes)

DEFAULTS = digits.DEFAULTS.replace(
    model="mlp", agents=3, alpha=1.0, epochs=6, eval_every=3, progress=False
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of `experiments.digits` with these flags; default: those of the command line."""
    return cli.run_main(digits.main, DEFAULTS, digits.__doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
