"""LeNet-5 (LeCun et al., 1998) in its usual ReLU and max-pooling form, for 28x28 grey images.

61,706 parameters and F = 84 at 28x28x1; other image sizes and channels work, the first linear layer
takes its size from the image. Initialisation is PyTorch's default, as the recorded initial
parameters of the published code show.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ccl_jax.models.layers import ConvPool, conv, dense, head, max_pool_2x2
from ccl_jax.models.norm import activation, norm


class LeNet5(nn.Module):
    """Two 5x5 convolutions with pooling, two hidden linear layers, and the last one.

    Attributes:
        num_classes: number of logits.
        norm: after each convolution, one of norm.NORMS; published: "none".
        dtype: compute type; parameters, features and logits are float32.
    """

    num_classes: int
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        act = activation(self.norm)
        x = images
        for i, (channels, padding) in enumerate([(6, 2), (16, 0)], start=1):
            if self.norm == "none":
                x = ConvPool(channels, 5, padding, dtype=self.dtype, name=f"conv{i}")(x)
                x = nn.relu(x)
                continue
            x = conv(
                x, channels, 5, padding=padding, use_bias=True, dtype=self.dtype, name=f"conv{i}"
            )
            x = act(norm(self.norm, train=train, dtype=self.dtype, name=f"norm{i}")(x))
            x = max_pool_2x2(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(dense(x, 120, dtype=self.dtype, name="fc1"))
        x = nn.relu(dense(x, 84, dtype=self.dtype, name="fc2"))
        return head(x, self.num_classes)
