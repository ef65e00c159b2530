"""MobileNet-V2 (Sandler et al., arXiv 1801.04381) for 32x32 images.

As in the published runs: no stride in the stem and in the second group of blocks, EvoNorm after
every convolution (so that projections are not linear), and a 1x1 convolution with normalisation as
shortcut where only the channels change. F = 1280; 2,296,922 parameters for 10 classes.
Initialisation is PyTorch's default, as theirs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from ccl_jax.models.layers import conv, head
from ccl_jax.models.norm import activation, norm

# (expansion, channels, number of blocks, stride of the first)
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; a shortcut where the stride is 1.

    Attributes:
        channels: of the result.
        expansion: factor of the channels in between.
        stride: of the depthwise convolution.
        norm: one of norm.NORMS.
        dtype: compute type.
    """

    channels: int
    expansion: int
    stride: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        make_conv = partial(conv, dtype=self.dtype)
        make_norm = partial(norm, self.norm, train=train, dtype=self.dtype)
        act = activation(self.norm)
        wide = self.expansion * x.shape[-1]
        y = act(make_norm(name="norm1")(make_conv(x, wide, 1, name="conv1")))
        y = make_conv(y, wide, 3, stride=self.stride, groups=wide, name="conv2")
        y = act(make_norm(name="norm2")(y))
        y = make_norm(name="norm3")(make_conv(y, self.channels, 1, name="conv3"))
        if self.stride != 1:
            return y
        if x.shape[-1] != self.channels:
            x = make_conv(x, self.channels, 1, name="shortcut_conv")
            x = make_norm(name="shortcut_norm")(x)
        return x + y


class MobileNetV2(nn.Module):
    """MobileNet-V2.

    Attributes:
        num_classes: number of logits.
        norm: one of norm.NORMS.
        dtype: compute type; parameters, features and logits are float32.
    """

    num_classes: int
    norm: str = "evonorm"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        make_norm = partial(norm, self.norm, train=train, dtype=self.dtype)
        act = activation(self.norm)
        x = conv(images, 32, 3, dtype=self.dtype, name="conv1")
        x = act(make_norm(name="norm1")(x))
        blocks = [
            (channels, expansion, stride if i == 0 else 1)
            for expansion, channels, number, stride in GROUPS
            for i in range(number)
        ]
        for i, (channels, expansion, stride) in enumerate(blocks):
            block = InvertedResidual(
                channels, expansion, stride, norm=self.norm, dtype=self.dtype, name=f"block{i}"
            )
            x = block(x, train=train)
        x = conv(x, 1280, 1, dtype=self.dtype, name="conv2")
        x = act(make_norm(name="norm2")(x))
        return head(jnp.mean(x, axis=(1, 2), dtype=jnp.float32), self.num_classes)
