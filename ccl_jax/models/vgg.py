"""VGG-11 (Simonyan and Zisserman, arXiv 1409.1556), reduced, for 32x32 images.

As in the published runs: at most 128 channels, one linear layer, F = 128; 579,786 parameters with
EvoNorm and 10 classes. Kernels start as He et al.'s normal ones of the fan-out, their biases at 0; the
linear layer starts as PyTorch's.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ccl_jax.models.layers import conv, he_normal_fan_out, head, max_pool_2x2
from ccl_jax.models.norm import activation, norm

# Channels of each 3x3 convolution; "M" is a 2x2 max pooling.
LAYERS = (16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M")


class VGG11(nn.Module):
    """Reduced VGG-11.

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
        start = {"kernel_init": he_normal_fan_out, "bias_init": nn.initializers.zeros}
        x = images
        number = 0
        for channels in LAYERS:
            if channels == "M":
                x = max_pool_2x2(x)
                continue
            number += 1
            name = f"conv{number}"
            x = conv(x, channels, 3, use_bias=True, **start, dtype=self.dtype, name=name)
            x = act(norm(self.norm, train=train, dtype=self.dtype, name=f"norm{number}")(x))
        return head(x.reshape(x.shape[0], -1), self.num_classes)
