"""A convolution that knows what to do when every agent has kernels of its own.

Batched over kernels, as by `jax.vmap` over agents, `jax.lax.conv_general_dilated` becomes a grouped
convolution. On CPUs its derivatives are up to seventy times slower than they need be
(docs/benchmark.md). So the convolution here has a batching rule of its own, and so have its two
derivatives:

*   A single agent is not batched: it gets a convolution of its own. That is each agent where there are
    as many devices as agents.
*   Images that are batched and kernels that are not are more images. Those are the cross-features: one
    model, the images of several neighbours.
*   Small convolutions are one batched matrix product of patches of the images and the kernels.
*   Others are unrolled: a plain convolution an agent, one after another in the program.

A single agent's convolution to few features, 16 of a CIFAR ResNet, fills a part of a vector of the CPU
only. It is computed for several neighbouring outputs of a row at once (`_widened`).

On GPUs and TPUs it stays what JAX makes of it. What is chosen is chosen by `_lowering`, and how many
outputs at once by `_outputs_at_once`. Models of users
that call JAX's convolution work all the same, with JAX's own batching.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# Numbers in the patches of one agent up to which patches are at least as fast as unrolling; measured.
_SMALL = 2**17
# So many agents on one device are unrolled at most: the time to compile grows with them.
_MOST_UNROLLED = 64

Op = Callable[[jax.Array, jax.Array], jax.Array]

_AS_DEFINED = contextvars.ContextVar("as_defined", default=False)


@contextlib.contextmanager
def as_defined() -> Iterator[None]:
    """What is traced inside has no arithmetic but the convolution's own: to count its operations."""
    token = _AS_DEFINED.set(True)
    try:
        yield
    finally:
        _AS_DEFINED.reset(token)


class _Window(NamedTuple):
    """How a kernel is moved.

    Attributes:
        strides: Steps in H and W.
        padding: Zeros before and after, in H and W.
        groups: Groups of channels that do not see each other.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    groups: int


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[Sequence[int]] = ((0, 0), (0, 0)),
    groups: int = 1,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, whatever it is batched over; for reverse-mode derivatives.

    Args:
        images: [batch, H, W, C].
        kernel: [height, width, C / groups, features].
        strides: steps in H and W.
        padding: zeros before and after, in H and W.
        groups: groups of channels that do not see each other.

    Returns:
        [batch, H', W', features].
    """
    window = _Window(tuple(strides), tuple(tuple(side) for side in padding), groups)
    widen = not _AS_DEFINED.get()
    return _with_derivatives(window, images.shape[1:3], kernel.shape[:2], widen)(images, kernel)


@functools.cache
def _with_derivatives(
    window: _Window, image: tuple[int, int], size: tuple[int, int], widen: bool
) -> Op:
    """The convolution of images [batch, *image, C] and kernels [*size, C / groups, features]."""
    plain = functools.partial(_plain, window)
    patched = functools.partial(_patched, window)
    places = math.prod(
        (side + sum(padding) - k) // stride + 1
        for side, padding, k, stride in zip(
            image, window.padding, size, window.strides, strict=True
        )
    )
    # Numbers in the patches of an image, for each of its channels.
    numbers = places * math.prod(size)
    single, single_by_image = plain, functools.partial(_image_gradient, plain, window, image)
    if widen:
        single = functools.partial(_single, window)
        single_by_image = functools.partial(_single_image_gradient, window, image)
    forward = _over_agents(single, patched, window, lambda x, k: x[0] * numbers * x[-1])
    by_image = _over_agents(
        single_by_image,
        functools.partial(_image_gradient, patched, window, image),
        window,
        lambda g, k: g[0] * numbers * k[2],
    )
    by_kernel = _over_agents(
        functools.partial(_kernel_gradient, plain, window, size),
        functools.partial(_kernel_gradient, patched, window, size),
        window,
        lambda x, g: x[0] * numbers * x[-1],
        both_are_images=True,
    )

    convolution = jax.custom_vjp(forward)
    convolution.defvjp(
        lambda images, kernel: (forward(images, kernel), (images, kernel)),
        lambda kept, g: (by_image(g, kept[1]), by_kernel(kept[0], g)),
    )
    return convolution


def _plain(window: _Window, images: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.padding,
        dimension_numbers=DIMENSIONS,
        feature_group_count=window.groups,
    )


def _single(window: _Window, images: jax.Array, kernel: jax.Array) -> jax.Array:
    """One agent's convolution, in the way that is faster for its shapes."""
    width = images.shape[2] + sum(window.padding[1]) - kernel.shape[1] + 1
    outputs = _outputs_at_once(window, width, kernel.shape)
    if outputs > 1:
        return _widened(window, outputs, images, kernel)
    return _plain(window, images, kernel)


def _outputs_at_once(window: _Window, width: int, kernel: tuple[int, ...]) -> int:
    """How many neighbouring outputs of a row a convolution computes at once: 1 is the plain way.

    Args:
        window: of the convolution.
        width: of its result at stride 1.
        kernel: its shape, [height, width, C / groups, features].

    Returns:
        A divisor of width.
    """
    _, size, channels, features = kernel
    if jax.default_backend() != "cpu" or window.strides != (1, 1) or window.groups > 1 or size < 3:
        return 1
    # Measured (docs/benchmark.md): 32 features fill the vectors; from few channels, 64 do.
    most = (32 if channels % 8 == 0 else 64) // features
    return max(n for n in range(1, max(most, 1) + 1) if width % n == 0)


def _widened(window: _Window, outputs: int, images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same by a kernel that makes several neighbouring outputs of a row, as features of one.

    The kernel is laid at as many places of a row, (width + outputs - 1) / width times the arithmetic,
    and moves in steps of as many.
    """
    features = kernel.shape[-1]
    sides = [(i, outputs - 1 - i) for i in range(outputs)]
    places = [jnp.pad(kernel, [(0, 0), side, (0, 0), (0, 0)]) for side in sides]
    window = window._replace(strides=(1, outputs))
    y = _plain(window, images, jnp.concatenate(places, axis=-1))
    return y.reshape(*y.shape[:2], -1, features)


def _patched(window: _Window, images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as patches [batch H' W', height width C] times [height width C, features]."""
    images = jnp.pad(images, [(0, 0), *window.padding, (0, 0)])
    height, width = (
        (side - k) // stride + 1
        for side, k, stride in zip(images.shape[1:3], kernel.shape[:2], window.strides, strict=True)
    )
    down, right = window.strides
    patches = jnp.concatenate(
        [
            images[
                :, y : y + (height - 1) * down + 1 : down, x : x + (width - 1) * right + 1 : right
            ]
            for y in range(kernel.shape[0])
            for x in range(kernel.shape[1])
        ],
        axis=-1,
    )
    features = kernel.shape[-1]
    product = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, features)
    return product.reshape(images.shape[0], height, width, features)


def _image_gradient(
    convolution: Op, window: _Window, image: tuple[int, int], g: jax.Array, kernel: jax.Array
) -> jax.Array:
    shape = (g.shape[0], *image, kernel.shape[2] * window.groups)
    images = jax.ShapeDtypeStruct(shape, g.dtype)
    return jax.linear_transpose(lambda x: convolution(x, kernel), images)(g)[0]


def _single_image_gradient(
    window: _Window, image: tuple[int, int], g: jax.Array, kernel: jax.Array
) -> jax.Array:
    # At stride 1 it is a convolution too, of the reversed kernel; to few features it can be widened.
    back = kernel[::-1, ::-1].swapaxes(2, 3)
    padding = tuple(
        (size - 1 - before, size - 1 - after)
        for size, (before, after) in zip(kernel.shape[:2], window.padding, strict=True)
    )
    outputs = _outputs_at_once(window, image[1], back.shape)
    if outputs > 1:
        return _widened(window._replace(padding=padding), outputs, g, back)
    return _image_gradient(functools.partial(_plain, window), window, image, g, kernel)


def _kernel_gradient(
    convolution: Op, window: _Window, size: tuple[int, int], images: jax.Array, g: jax.Array
) -> jax.Array:
    shape = (*size, images.shape[-1] // window.groups, g.shape[-1])
    kernel = jax.ShapeDtypeStruct(shape, images.dtype)
    return jax.linear_transpose(lambda k: convolution(images, k), kernel)(g)[0]


def _over_agents(
    plain: Op,
    patched: Op,
    window: _Window,
    count: Callable[[tuple[int, ...], tuple[int, ...]], int],
    both_are_images: bool = False,
) -> Op:
    """An operation with a batching rule.

    Args:
        plain: op(images, kernel), or of images and images.
        patched: The same by matrix products.
        window: Of the convolution.
        count: Numbers in the patches of one agent, of the shapes of both arguments.
        both_are_images: Whether the second argument is images too, so that neither is a model's own.
    """
    operation = custom_vmap(plain)

    @operation.def_vmap
    def rule(agents, batched, first, second):
        if not batched[1] and not both_are_images:
            merged = operation(first.reshape(-1, *first.shape[2:]), second)
            return merged.reshape(agents, -1, *merged.shape[1:]), True
        first, second = (
            x if is_batched else jnp.broadcast_to(x[None], (agents, *x.shape))
            for x, is_batched in zip((first, second), batched, strict=True)
        )
        how = _lowering(agents, window.groups, count(first.shape[1:], second.shape[1:]))
        if how == "unrolled":
            return jnp.stack([operation(first[i], second[i]) for i in range(agents)]), True
        return jax.vmap(patched if how == "patches" else plain)(first, second), True

    return operation


def _lowering(agents: int, groups: int, numbers: int) -> str:
    """How a convolution of several agents on one device is computed.

    Args:
        agents: How many they are.
        groups: Groups of channels.
        numbers: In the patches of one agent's images.

    Returns:
        "patches", "unrolled", or "batched" for JAX's own way.
    """
    if jax.default_backend() != "cpu":
        return "batched"
    if agents > 1 and groups == 1 and numbers <= _SMALL:
        return "patches"
    return "unrolled" if agents <= _MOST_UNROLLED else "batched"
