"""Residual networks (He et al., arXiv 1512.03385) for CIFAR and for ImageNet.

CIFAR: depth 6n + 2, a 3x3 stem of 16 channels and three stages of n blocks with 16, 32 and 64
channels; ResNet-20 has 272,474 parameters for 10 classes and F = 64. ImageNet: a 7x7 stem with
stride 2 and max pooling, four stages; F = 512, or 2048 for ResNet-50.

As in the published runs: where the shape changes the shortcut is a 1x1 convolution and its
normalisation, and with EvoNorm, itself an activation, nothing follows the residual sum.
Convolutions have no bias. They start normal with variance 2 / fan_out and the last layer as
PyTorch's, as the recorded initial parameters of the published code show.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from ccl_jax.models.layers import conv, he_normal_fan_out, head
from ccl_jax.models.norm import activation, norm


class Block(nn.Module):
    """One residual block: 3x3, 3x3; or, a bottleneck, 1x1, 3x3, 1x1 with four times the channels.

    Attributes:
        width: channels of the block, before a bottleneck's expansion.
        stride: of the first 3x3 convolution.
        bottleneck: which of the two forms.
        norm: one of norm.NORMS.
        dtype: compute type.
    """

    width: int
    stride: int
    bottleneck: bool
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        make_conv = partial(conv, kernel_init=he_normal_fan_out, dtype=self.dtype)
        make_norm = partial(norm, self.norm, train=train, dtype=self.dtype)
        act = activation(self.norm)
        if self.bottleneck:
            # (channels, kernel size, stride); the stride sits in the 3x3, as in torchvision
            convs = [(self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)]
        else:
            convs = [(self.width, 3, self.stride), (self.width, 3, 1)]

        y = x
        for i, (channels, size, stride) in enumerate(convs, start=1):
            y = make_conv(y, channels, size, stride=stride, name=f"conv{i}")
            y = make_norm(name=f"norm{i}")(y)
            if i < len(convs):
                y = act(y)
        if y.shape != x.shape:
            x = make_conv(x, y.shape[-1], 1, stride=self.stride, name="shortcut_conv")
            x = make_norm(name="shortcut_norm")(x)
        return act(x + y)


class ResNet(nn.Module):
    """A residual network; `cifar_resnet` and `imagenet_resnet` make the named ones.

    Attributes:
        num_classes: number of logits.
        blocks: number of blocks of each stage; each stage after the first halves H and W.
        width: channels of the stem and of the first stage; every stage doubles it.
        bottleneck: the form of the blocks.
        imagenet_stem: a 7x7 stem with stride 2 and a 3x3 max pooling, instead of a 3x3 stem.
        norm: one of norm.NORMS.
        dtype: compute type; parameters, features and logits are float32.
    """

    num_classes: int
    blocks: tuple[int, ...]
    width: int
    bottleneck: bool = False
    imagenet_stem: bool = False
    norm: str = "evonorm"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        size, stride = (7, 2) if self.imagenet_stem else (3, 1)
        x = conv(
            images,
            self.width,
            size,
            stride=stride,
            kernel_init=he_normal_fan_out,
            dtype=self.dtype,
            name="conv1",
        )
        x = norm(self.norm, train=train, dtype=self.dtype, name="norm1")(x)
        x = activation(self.norm)(x)
        if self.imagenet_stem:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, number in enumerate(self.blocks):
            for i in range(number):
                x = Block(
                    self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    bottleneck=self.bottleneck,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train=train)
        features = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return head(features, self.num_classes)


def cifar_resnet(depth: int) -> Callable[..., ResNet]:
    """Builder of the CIFAR ResNet of depth 6n + 2: num_classes, norm, dtype -> module.

    Raises:
        ValueError: depth is not 6n + 2 with n >= 1.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth is {depth}; a CIFAR ResNet has depth 6n + 2: 8, 14, 20, 26, ...")
    return partial(ResNet, blocks=((depth - 2) // 6,) * 3, width=16)


def imagenet_resnet(depth: int) -> Callable[..., ResNet]:
    """Builder of the ImageNet ResNet of depth 18, 34 or 50: num_classes, norm, dtype -> module.

    Raises:
        ValueError: another depth.
    """
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
    if depth not in blocks:
        raise ValueError(f"depth is {depth}; an ImageNet ResNet has depth 18, 34 or 50")
    return partial(
        ResNet, blocks=blocks[depth], width=64, bottleneck=depth >= 50, imagenet_stem=True
    )
