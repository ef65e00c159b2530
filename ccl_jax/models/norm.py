"""Normalisation layers: EvoNorm-S0 and the usual alternatives, under one name each.

EvoNorm-S0 (Liu et al., "Evolving Normalization-Activation Layers", arXiv 2004.02967) normalises by
the standard deviation of a group of channels of one sample and is the activation as well. It needs
no batch statistics, which differ between agents whose data differ; so the published runs of the
cross-feature contrastive loss use it, with a hard sigmoid in place of the sigmoid:

    y = x * clamp(x / 6 + 1/2, 0, 1) / sqrt(var_group(x) + 1e-5) * scale + shift.

A model uses two functions: `norm(kind, ...)` makes the layer, `activation(kind)` the function after
it, which is the identity for EvoNorm and ReLU otherwise.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

NORMS = ("evonorm", "group", "batch", "none")
EPSILON = 1e-5  # PyTorch's default, and EvoNorm's in the published code


def group_variance(x: jax.Array, groups: int) -> jax.Array:
    """Biased variance of each sample's groups of neighbouring channels.

    The mean of the channels' variances plus the variance of their means: equal to one variance over
    the group, and faster on CPUs, because the large sums run over contiguous channels.

    Args:
        x: [batch, H, W, C] float32.
        groups: number of groups, a divisor of C.

    Returns:
        [batch, 1, 1, C]: every channel carries the variance of its group.
    """
    batch, _, _, channels = x.shape
    by_group = (batch, groups, channels // groups)
    means = jnp.mean(x, axis=(1, 2)).reshape(by_group)
    variances = jnp.var(x, axis=(1, 2)).reshape(by_group)
    variance = jnp.mean(variances, axis=-1) + jnp.var(means, axis=-1)
    return jnp.repeat(variance, channels // groups, axis=-1)[:, None, None, :]


class EvoNormS0(nn.Module):
    """EvoNorm-S0: normalisation and activation in one.

    Attributes:
        groups: groups of channels; where it does not divide the channels, their greatest common
            divisor is used.
    """

    groups: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        shift = self.param("bias", nn.initializers.zeros, (channels,))
        std = jnp.sqrt(group_variance(x, math.gcd(self.groups, channels)) + EPSILON)
        scale, shift = scale[None, None, None, :], shift[None, None, None, :]
        return x * jnp.clip(x / 6 + 0.5, 0, 1) * (scale / std) + shift


def norm(
    kind: str, *, train: bool, dtype: jnp.dtype, name: str
) -> Callable[[jax.Array], jax.Array]:
    """Makes one normalisation layer.

    Args:
        kind: one of NORMS. "group" has the two groups of the published code.
        train: batch norm only: use this batch's statistics and update the running ones.
        dtype: type of the result; the layer itself computes in float32.
        name: the layer's name in the parameter tree.

    Returns:
        The layer as a function, [batch, H, W, C] -> [batch, H, W, C]; the identity for "none".

    Raises:
        ValueError: kind is not in NORMS.
    """
    if kind == "none":
        return lambda x: x
    if kind == "evonorm":
        layer = EvoNormS0(name=name)
    elif kind == "group":
        layer = nn.GroupNorm(2, epsilon=EPSILON, use_fast_variance=False, name=name)
    elif kind == "batch":
        # Momentum 0.9 is PyTorch's 0.1. PyTorch keeps unbiased running variances, flax biased ones.
        layer = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=EPSILON,
            use_fast_variance=False,
            name=name,
        )
    else:
        raise ValueError(f"norm {kind!r} is unknown; choose one of {', '.join(NORMS)}")
    return lambda x: layer(x.astype(jnp.float32)).astype(dtype)


def activation(kind: str) -> Callable[[jax.Array], jax.Array]:
    """The activation that follows a normalisation: none after EvoNorm, ReLU after all others."""
    return (lambda x: x) if kind == "evonorm" else nn.relu
