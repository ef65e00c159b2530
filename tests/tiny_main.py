"""`python tiny_main.py FLAGS`: experiments.digits with a model that compiles in a second."""

import sys

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


models.MODELS["mlp"] = lambda num_classes, dtype: Mlp(num_classes)

if __name__ == "__main__":
    defaults = digits.DEFAULTS.replace(
        model="mlp", agents=3, alpha=1.0, epochs=6, eval_every=3, progress=False
    )
    sys.exit(cli.run_main(digits.main, defaults, digits.__doc__))
