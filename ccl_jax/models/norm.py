"""Normalisation layers: EvoNorm-S0 and the usual alternatives, under one name each.

EvoNorm-S0 (Liu et al., "Evolving Normalization-Activation Layers", arXiv 2004.02967) normalises by
the standard deviation of a group of channels of one sample and is the activation as well. It needs
no batch statistics, which differ between agents whose data differ; so the published runs of the
cross-feature contrastive loss use it, with a hard sigmoid in place of the sigmoid:

    y = x * clamp(x / 6 + 1/2, 0, 1) / sqrt(var_group(x) + 1e-5) * scale + shift.

A model uses two functions: `norm(kind, ...)` makes the layer, `activation(kind)` the function after
it, which is the identity for EvoNorm and ReLU otherwise.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ccl_jax.models import lowering

NORMS = ("evonorm", "group", "batch", "none")
EPSILON = 1e-5  # PyTorch's default, and EvoNorm's in the published code


def group_moments(x: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each sample's groups of neighbouring channels.

    The variance is the mean of the channels' variances plus the variance of their means: equal to one
    variance over the group, and faster on CPUs, because the large sums run over contiguous channels.

    Args:
        x: [batch, H, W, C] float32.
        groups: number of groups, a divisor of C.

    Returns:
        Two arrays [batch, 1, 1, C]: every channel carries the values of its group.
    """
    batch, _, _, channels = x.shape
    width = channels // groups
    means = jnp.mean(x, axis=(1, 2)).reshape(batch, groups, width)
    variances = jnp.var(x, axis=(1, 2)).reshape(batch, groups, width)
    variance = jnp.mean(variances, axis=-1) + jnp.var(means, axis=-1)
    carry = lambda by_group: jnp.repeat(by_group, width, axis=-1)[:, None, None, :]
    return carry(jnp.mean(means, axis=-1)), carry(variance)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def evonorm_s0(x: jax.Array, scale: jax.Array, shift: jax.Array, groups: int) -> jax.Array:
    """EvoNorm-S0 as a function, with a derivative of its own (reverse mode only).

    The derivative reads x and the incoming gradient twice and keeps nothing of x's size but x, in x's
    own type; automatic differentiation writes and reads several arrays of that size.

    Args:
        x: [batch, H, W, C].
        scale: [C] float32.
        shift: [C] float32.
        groups: number of groups, a divisor of C.

    Returns:
        [batch, H, W, C] in the type of x; computed in float32.
    """
    return _evonorm_forward(x, scale, shift, groups)[0]


def _evonorm_forward(x, scale, shift, groups):
    y, mean, std = _over_agents(_forward, groups)(x, scale, shift)
    return y, (x, scale, mean, std)


def _evonorm_backward(groups, kept, gradient):
    x, scale, mean, std = kept
    by_x, by_scale = _over_agents(_backward, groups)(x, gradient, mean, std, scale)
    return by_x, by_scale, jnp.sum(gradient.astype(jnp.float32), axis=(0, 1, 2))


def _forward(groups, x, scale, shift):
    wide = x.astype(jnp.float32)
    mean, variance = group_moments(wide, groups)
    std = jnp.sqrt(variance + EPSILON)
    y = wide * jnp.clip(wide / 6 + 0.5, 0, 1) * (scale[None, None, None] / std)
    return (y + shift[None, None, None]).astype(x.dtype), mean, std


def _backward(groups, x, gradient, mean, std, scale):
    wide, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
    batch, height, width, channels = x.shape
    # By scale and by 1 / std: sums of gradient * x clamp(x / 6 + 1/2, 0, 1).
    gated = gradient * (wide * jnp.clip(wide / 6 + 0.5, 0, 1))
    by_channel = jnp.sum(gated, axis=(1, 2), keepdims=True)
    by_group = (by_channel * scale[None, None, None]).reshape(batch, groups, -1).sum(axis=-1)
    by_group = jnp.repeat(by_group, channels // groups, axis=-1)[:, None, None]
    size = height * width * channels // groups
    # At the kinks of the clamp, -3 and 3, PyTorch's choice: the slope of the inside.
    slope = jnp.where(jnp.abs(wide) <= 3, wide / 3 + 0.5, jnp.where(wide > 0, 1.0, 0.0))
    by_x = gradient * slope * (scale[None, None, None] / std)
    by_x -= (wide - mean) * (by_group / (size * std**3))
    by_scale = jnp.sum(by_channel / std, axis=(0, 1, 2))
    return by_x.astype(x.dtype), by_scale


@functools.cache
def _over_agents(op: Callable[..., tuple[jax.Array, ...]], groups: int) -> Callable[..., Any]:
    """`op(groups, ...)` of one agent; on TPUs of all that lie side by side in the channels.

    All arrays end in channels, and so do all results.
    """
    # Traced once for each shape instead of in every layer; what is compiled is the same.
    one = jax.jit(functools.partial(op, groups), inline=True)

    def rule(agents, axes, *arrays):
        channels = arrays[0].shape[-1]
        side = lowering.together(agents, channels, channels)
        folded = [
            lowering.fold(agents, axis, x, side) for x, axis in zip(arrays, axes, strict=True)
        ]
        wide = functools.partial(op, groups * side)
        results = jax.vmap(wide, tuple(x.ndim - 2 for x in folded), out_axes=-2)(*folded)
        return zip(*(lowering.unfold(agents, x) for x in results), strict=True)

    ruled = lowering.with_rule(one, rule)
    return lambda *arrays: (ruled if lowering.platform() == "tpu" else one)(*arrays)


evonorm_s0.defvjp(_evonorm_forward, _evonorm_backward)


class EvoNormS0(nn.Module):
    """EvoNorm-S0: normalisation and activation in one; computes in float32.

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
        return evonorm_s0(x, scale, shift, math.gcd(self.groups, channels))


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
        evonorm = EvoNormS0(name=name)
        return lambda x: evonorm(x.astype(dtype))
    if kind == "group":
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
