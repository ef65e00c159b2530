"""A small convolutional network for 8x8 handwritten digits, quick to train on a CPU.

Two 3x3 convolutions with a pooling in between, then the mean over positions as features: F = 64, as
many as ResNet-20 has. 10,250 parameters for grey images, 10 classes and EvoNorm, the default. Other
image sizes work. Initialisation is PyTorch's default.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ccl_jax.models.layers import conv, head, max_pool_2x2
from ccl_jax.models.norm import activation, norm


class SmallCNN(nn.Module):
    """Two convolutions and the last linear layer.

    Attributes:
        num_classes: number of logits.
        norm: after each convolution, one of norm.NORMS.
        dtype: compute type; parameters, features and logits are float32.
    """

    num_classes: int
    norm: str = "evonorm"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        act = activation(self.norm)
        x = conv(images, 16, 3, use_bias=True, dtype=self.dtype, name="conv1")
        x = act(norm(self.norm, train=train, dtype=self.dtype, name="norm1")(x))
        x = max_pool_2x2(x)
        x = conv(x, 64, 3, use_bias=True, dtype=self.dtype, name="conv2")
        x = act(norm(self.norm, train=train, dtype=self.dtype, name="norm2")(x))
        return head(jnp.mean(x, axis=(1, 2), dtype=jnp.float32), self.num_classes)
