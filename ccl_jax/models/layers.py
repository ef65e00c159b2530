"""What the models share: PyTorch's initialisation, pooling, and the last linear layer.

Models of the published runs are PyTorch models, so layers start as PyTorch's do unless a model says
otherwise: weights and biases of convolutions and linear layers are uniform in +-1/sqrt(fan_in)
("kaiming_uniform with a = sqrt(5)"), fan_in the number of inputs of one output.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from ccl_jax.models.convolution import convolve

uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", dtype=jnp.float32)
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal", dtype=jnp.float32)


def uniform_bias(fan_in: int) -> Callable[..., jax.Array]:
    """Initialiser of the bias of a layer with fan_in inputs: uniform in +-1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / math.sqrt(fan_in)

    return init


def dense(x: jax.Array, features: int, *, dtype: jnp.dtype, name: str) -> jax.Array:
    """A linear layer that starts as PyTorch's: [..., inputs] -> [..., features]."""
    layer = nn.Dense(
        features,
        dtype=dtype,
        kernel_init=uniform_fan_in,
        bias_init=uniform_bias(x.shape[-1]),
        name=name,
    )
    return layer(x)


def conv(
    x: jax.Array,
    features: int,
    size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: Callable[..., jax.Array] = uniform_fan_in,
    bias_init: Callable[..., jax.Array] | None = None,
    dtype: jnp.dtype,
    name: str,
) -> jax.Array:
    """A convolution with a square kernel.

    Args:
        x: [batch, H, W, C].
        features: channels of the result.
        size: side of the kernel.
        stride: step in H and W.
        padding: zeros on each side; None for size // 2, which keeps H and W at stride 1.
        groups: groups of channels that do not see each other; C for a depthwise convolution.
        use_bias: whether a bias is added.
        kernel_init: initialiser of the kernel.
        bias_init: initialiser of the bias; None for PyTorch's.
        dtype: compute type.
        name: the layer's name in the parameter tree.

    Returns:
        [batch, H', W', features].
    """
    padding = size // 2 if padding is None else padding
    start = (kernel_init, bias_init)
    return Conv(features, size, stride, padding, groups, use_bias, *start, dtype, name=name)(x)


class Conv(nn.Module):
    """A convolution with a square kernel; attributes as the arguments of `conv`."""

    features: int
    size: int
    stride: int
    padding: int
    groups: int
    use_bias: bool
    kernel_init: Callable[..., jax.Array]
    bias_init: Callable[..., jax.Array] | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1] // self.groups
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        padding = [(self.padding, self.padding)] * 2
        x = convolve(x.astype(self.dtype), kernel, [self.stride] * 2, padding, self.groups)
        if not self.use_bias:
            return x
        start = self.bias_init or uniform_bias(self.size * self.size * channels)
        bias = self.param("bias", start, (self.features,))
        return x + bias.astype(self.dtype)[None, None, None]


class ConvPool(nn.Module):
    """`max_pool_2x2(conv(x))` with bias at stride 1, as one convolution at half the resolution.

    The 2x2 outputs of a square see a window of size + 1 pixels a side. So squares of 2x2 pixels become
    channels, the kernel is laid at each of the four places into a window of that size, and pooling is
    the maximum over the four groups of channels that result. (size + 1)^2 / size^2 times the
    arithmetic, but four times the channels: many times faster where they are few, as in LeNet-5.

    Attributes:
        features: channels of the result.
        size: side of the kernel, odd.
        padding: zeros on each side.
        dtype: compute type.
    """

    features: int
    size: int
    padding: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, H, W, C] -> [batch, H' // 2, W' // 2, features], H' the convolution's height."""
        size, channels = self.size, x.shape[-1]
        shape = (size, size, channels, self.features)
        kernel = self.param("kernel", uniform_fan_in, shape).astype(self.dtype)
        bias = self.param("bias", uniform_bias(size * size * channels), (self.features,))

        x = jnp.pad(x.astype(self.dtype), [(0, 0), *[(self.padding, self.padding)] * 2, (0, 0)])
        even = [max(side - size + 1, 0) // 2 * 2 + size - 1 for side in x.shape[1:3]]
        x = _squares_to_channels(x[:, : even[0], : even[1]])
        places = [(a, b) for a in (0, 1) for b in (0, 1)]
        kernels = [jnp.pad(kernel, [(a, 1 - a), (b, 1 - b), (0, 0), (0, 0)]) for a, b in places]
        kernel = jnp.concatenate(kernels, axis=-1)
        kernel = _squares_to_channels(kernel.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
        x = convolve(x, kernel, side_by_side=False)  # Pooling would take them apart.
        pooled = functools.reduce(jnp.maximum, jnp.split(x, len(places), axis=-1))
        return pooled + bias.astype(self.dtype)[None, None, None]


def _squares_to_channels(x: jax.Array) -> jax.Array:
    """[batch, 2 h, 2 w, C] -> [batch, h, w, 4 C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def head(features: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """The end of every model: float32 features [batch, F] and their logits [batch, classes]."""
    features = features.astype(jnp.float32)
    return features, dense(features, num_classes, dtype=jnp.float32, name="head")


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 squares, stride 2; an odd last row or column is left out, as in PyTorch.

    Four strided slices: XLA's own window reduction has a slow gradient on CPUs.

    Args:
        x: [batch, H, W, C].

    Returns:
        [batch, H // 2, W // 2, C].
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = jnp.maximum(x[:, 0::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])
