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

On TPUs agents with few channels lie side by side in the channels, with a block-diagonal kernel. On GPUs
it stays what JAX makes of it, but for derivatives by the kernel (`_batched_kernel_gradient`). What is
chosen is chosen by `ccl_jax.models.lowering`, and how many outputs at once by `_outputs_at_once`.
Models of users that call JAX's convolution work all the same, with JAX's own batching.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax.models import lowering

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

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
        side_by_side: Whether agents may lie side by side in the channels.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    groups: int
    side_by_side: bool = True


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[Sequence[int]] = ((0, 0), (0, 0)),
    groups: int = 1,
    *,
    side_by_side: bool = True,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, whatever it is batched over; for reverse-mode derivatives.

    Args:
        images: [batch, H, W, C].
        kernel: [height, width, C / groups, features].
        strides: steps in H and W.
        padding: zeros before and after, in H and W.
        groups: groups of channels that do not see each other.
        side_by_side: whether agents may lie side by side in the channels; worth it where what follows
            keeps them there.

    Returns:
        [batch, H', W', features].
    """
    window = _Window(tuple(strides), tuple(tuple(side) for side in padding), groups, side_by_side)
    widen = not _AS_DEFINED.get()
    made = _with_derivatives(
        window, images.shape[1:3], kernel.shape[:2], widen, lowering.platform()
    )
    return made(images, kernel)


@functools.cache
def _with_derivatives(
    window: _Window, image: tuple[int, int], size: tuple[int, int], widen: bool, platform: str
) -> Op:
    """The convolution of images [batch, *image, C] and kernels [*size, C / groups, features].

    JAX remembers what it has traced of a function, so there is one for each platform.
    """
    del platform
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
    forward = _over_agents(
        single,
        patched,
        _folded(plain),
        window,
        lambda x, k: (x[0] * numbers * x[-1], *k[-2:]),
    )
    by_image = _over_agents(
        single_by_image,
        functools.partial(_image_gradient, patched, window, image),
        _folded(functools.partial(_image_gradient, plain, window, image)),
        window,
        lambda g, k: (g[0] * numbers * k[2], *k[-2:]),
    )
    plain_by_kernel = functools.partial(_kernel_gradient, plain, window, size)
    by_kernel = _over_agents(
        plain_by_kernel,
        functools.partial(_kernel_gradient, patched, window, size),
        _folded_kernel_gradient(plain_by_kernel),
        window,
        lambda x, g: (x[0] * numbers * x[-1], x[-1], g[-1]),
        batched=functools.partial(_batched_kernel_gradient, plain, window, size),
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
    here = lowering.platform() == "cpu"
    if not here or window.strides != (1, 1) or window.groups > 1 or size < 3:
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


def _batched_kernel_gradient(
    convolution: Op, window: _Window, size: tuple[int, int], images: jax.Array, g: jax.Array
) -> jax.Array:
    """Kernel gradients of stacks of agents.

    On a GPU as the transpose of the batched convolution, which cuDNN has a call for; a batch of
    transposed ones would become convolutions with windows as large as the images.
    """
    if lowering.platform() != "gpu":
        gradient = functools.partial(_kernel_gradient, convolution, window, size)
        return jax.vmap(gradient)(images, g)
    shape = (len(images), *size, images.shape[-1] // window.groups, g.shape[-1])
    kernels = jax.ShapeDtypeStruct(shape, images.dtype)
    return jax.linear_transpose(lambda k: jax.vmap(convolution)(images, k), kernels)(g)[0]


def _over_agents(
    plain: Op,
    patched: Op,
    folded: Callable[..., tuple[jax.Array, int]],
    window: _Window,
    sizes: Callable[[tuple[int, ...], tuple[int, ...]], tuple[int, int, int]],
    batched: Op | None = None,
    both_are_images: bool = False,
) -> Op:
    """An operation with a batching rule.

    Args:
        plain: op(images, kernel), or of images and images.
        patched: The same by matrix products.
        folded: The same of agents side by side; see `_folded`.
        window: Of the convolution.
        sizes: Numbers in the patches of one agent, channels in and out; of both arguments' shapes.
        batched: The operation of stacks of agents; None: plain's, vmapped.
        both_are_images: Whether the second argument is images too, so that neither is a model's own.
    """

    def rule(agents, axes, *arrays):
        if axes[1] is None and not both_are_images:
            first = lowering.stacked(agents, axes[0], arrays[0])
            merged = operation(first.reshape(-1, *first.shape[2:]), arrays[1])
            return (merged.reshape(agents, -1, *merged.shape[1:]),), (0,)
        shapes = (
            tuple(side for i, side in enumerate(x.shape) if i != axis)
            for x, axis in zip(arrays, axes, strict=True)
        )
        how = lowering.of_convolution(agents, window.groups, *sizes(*shapes), window.side_by_side)
        if how == "folded":
            result, axis = folded(agents, axes, *arrays)
            return (result,), (axis,)
        first, second = (
            lowering.stacked(agents, axis, x) for x, axis in zip(arrays, axes, strict=True)
        )
        if how == "unrolled":
            return (jnp.stack([operation(first[i], second[i]) for i in range(agents)]),), (0,)
        stacks = jax.vmap(patched) if how == "patches" else batched or jax.vmap(plain)
        return (stacks(first, second),), (0,)

    ruled = lowering.with_rule(lambda *arrays: (plain(*arrays),), rule)
    operation = lambda first, second: ruled(first, second)[0]
    return operation


def _folded(op: Op) -> Callable[..., tuple[jax.Array, int]]:
    """An operation of images and kernels, to images, of agents that lie side by side in the channels."""

    def folded(agents, axes, images, kernels):
        kernels = lowering.stacked(agents, axes[1], kernels)
        side = lowering.together(agents, *kernels.shape[-2:])
        images = lowering.fold(agents, axes[0], images, side)
        wide = jax.vmap(op, (3, 0), 3)(images, lowering.fold_kernels(kernels, side))
        return lowering.unfold(agents, wide)

    return folded


def _folded_kernel_gradient(op: Op) -> Callable[..., tuple[jax.Array, int]]:
    """The kernels' gradients, of images of agents that lie side by side in the channels."""

    def folded(agents, axes, images, g):
        side = lowering.together(agents, images.shape[-1], g.shape[-1])
        wide = (
            lowering.fold(agents, axis, x, side) for x, axis in zip((images, g), axes, strict=True)
        )
        return lowering.unfold_kernels(jax.vmap(op, (3, 3))(*wide), side), 0

    return folded
