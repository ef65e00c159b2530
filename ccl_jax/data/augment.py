"""Augmentation and normalisation in JAX, inside the jitted step.

An augmentation is a function `(key, images) -> images` of one agent's batch, float32
`[batch, H, W, C]` in and out; vmap it over keys and images for all agents. It works on pixels
before normalisation, so that padding with 0 is black, as in the published experiments.
Where images are stored larger than the model sees them (256 and 224 pixels for ImageNet), the
augmentation also makes the size.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ccl_jax.names import look_up

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], scale: float
) -> jax.Array:
    """(pixel / scale - mean) / std.

    Args:
      images: `[..., H, W, C]` uint8 or float pixels, 0 to scale.
      mean: Mean of each of the C channels, in units of pixel / scale.
      std: Standard deviation of each of the C channels, in the same units.
      scale: Pixel value that counts as 1.

    Returns:
      `[..., H, W, C]` float32.
    """
    along_channels = (1,) * (images.ndim - 1) + (-1,)
    mean = jnp.asarray(mean, jnp.float32).reshape(along_channels)
    std = jnp.asarray(std, jnp.float32).reshape(along_channels)
    return (images.astype(jnp.float32) / scale - mean) / std


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2.

    Args:
      key: `jax.random.key`.
      images: `[batch, H, W, C]`.

    Returns:
      The same shape and type.
    """
    flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def padded_crop(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Pads each image with 0 on every side and crops it back at a random place.

    Args:
      key: `jax.random.key`.
      images: `[batch, H, W, C]`.
      padding: Pixels a side; 4 is the custom for 32x32 images.

    Returns:
      The same shape and type.
    """
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        start = (offset[0], offset[1], jnp.int32(0))
        return jax.lax.dynamic_slice(image, start, images.shape[1:])

    return jax.vmap(crop)(jnp.pad(images, around), offsets)


class Boxes(NamedTuple):
    """Rectangles in images, in pixels; each field `[batch]` int32."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


_TRIES = 10  # As torchvision's RandomResizedCrop.


def random_boxes(
    key: jax.Array,
    batch: int,
    height: int,
    width: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Boxes:
    """Draws crop boxes by the rule of torchvision's RandomResizedCrop, with its default ranges.

    The area is uniform in `area` of the image, the ratio of width to height log-uniform in `ratio`,
    the place uniform. The first of 10 draws that fits the image counts; if none does, it is the
    largest centred box with a ratio in range.

    Args:
      key: `jax.random.key`.
      batch: Number of boxes.
      height: Of the images, in pixels.
      width: Of the images, in pixels.
      area: Smallest and largest part of the image, above 0 and at most 1.
      ratio: Smallest and largest width / height, above 0.

    Returns:
      `batch` boxes that lie within the image.
    """
    # One matrix of draws for everything: XLA on a CPU compiles it five times faster than four.
    draws = jax.random.uniform(key, (batch, 2 * _TRIES + 2), jnp.float32)
    area_draws, ratio_draws, top_draws, left_draws = jnp.split(
        draws, (_TRIES, 2 * _TRIES, 2 * _TRIES + 1), axis=1
    )
    pixels = height * width * (area[0] + (area[1] - area[0]) * area_draws)
    ratios = ratio[0] * (ratio[1] / ratio[0]) ** ratio_draws
    widths = jnp.round(jnp.sqrt(pixels * ratios)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(pixels / ratios)).astype(jnp.int32)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

    first = jnp.argmax(fits, axis=1, keepdims=True)
    pick = lambda drawn, otherwise: jnp.where(
        fits.any(axis=1), jnp.take_along_axis(drawn, first, axis=1)[:, 0], otherwise
    )
    box_height = pick(heights, min(height, round(width / ratio[0])))
    box_width = pick(widths, min(width, round(height * ratio[1])))

    def place(draws: jax.Array, room: jax.Array) -> jax.Array:
        random = (draws[:, 0] * (room + 1).astype(jnp.float32)).astype(jnp.int32)
        return jnp.where(fits.any(axis=1), random, room // 2)

    top, left = place(top_draws, height - box_height), place(left_draws, width - box_width)
    return Boxes(top, left, box_height, box_width)


def resize_boxes(images: jax.Array, boxes: Boxes, size: tuple[int, int] | None = None) -> jax.Array:
    """Crops each image to its box and scales the crop to a size, bilinearly.

    Pixels outside the box play no part. Where the box is not larger than the result, this is what
    torchvision computes with or without antialiasing, but for its rounding to whole pixel values; a
    larger box (up to 256 to 224 pixels) is scaled down without antialiasing.

    Args:
      images: `[batch, H, W, C]` float32.
      boxes: One for each image, within it.
      size: (H', W') of the result; None for (H, W).

    Returns:
      `[batch, H', W', C]` float32.
    """
    _, height, width, _ = images.shape
    to_height, to_width = size or (height, width)
    stretch = jax.vmap(_bilinear, (0, 0, None, None))
    rows = stretch(boxes.top, boxes.height, height, to_height)
    columns = stretch(boxes.left, boxes.width, width, to_width)
    return jnp.einsum("bhy,byxc,bwx->bhwc", rows, images, columns, precision="highest")


def _bilinear(start: jax.Array, length: jax.Array, size: int, to_size: int) -> jax.Array:
    """`[to_size, size]` weights that stretch pixels start to start + length - 1 over to_size."""
    pixels = jnp.arange(size, dtype=jnp.float32)
    targets = jnp.arange(to_size, dtype=jnp.float32)
    start, length = start.astype(jnp.float32), length.astype(jnp.float32)
    # Pixel centres lie at half integers; beyond the outermost centres the last pixel repeats.
    source = jnp.clip((targets + 0.5) * length / to_size - 0.5, 0.0, length - 1.0) + start
    return jnp.maximum(1.0 - jnp.abs(source[:, None] - pixels[None, :]), 0.0)


def random_resized_crop(
    key: jax.Array, images: jax.Array, size: tuple[int, int] | None = None
) -> jax.Array:
    """Crops each image to a box of `random_boxes` and scales it to a size.

    Args:
      key: `jax.random.key`.
      images: `[batch, H, W, C]` float32.
      size: (H', W') of the result; None for (H, W).

    Returns:
      `[batch, H', W', C]` float32.
    """
    batch, height, width, _ = images.shape
    return resize_boxes(images, random_boxes(key, batch, height, width), size)


def centre_crop(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The middle of each image.

    Args:
      images: `[..., H, W, C]`.
      size: (H', W') of the result, at most (H, W).

    Returns:
      `[..., H', W', C]` of the same type.
    """
    top, left = (
        round((have - want) / 2) for have, want in zip(images.shape[-3:], size, strict=False)
    )
    return images[..., top : top + size[0], left : left + size[1], :]


def make(name: str, size: tuple[int, int] | None = None) -> Augmentation:
    """Makes an augmentation by name.

    Args:
      name: One of `NAMES`: "none"; "flip-crop", as for CIFAR; "resized-crop-flip", as for
        Imagenette and ImageNet.
      size: (H', W') of the images it returns, at most what it is given; None keeps their size.
        "resized-crop-flip" scales its random crops to it, the others take the middle.

    Returns:
      A function `(key, images) -> images` of float32 `[batch, H, W, C]`.

    Raises:
      ValueError: Unknown name.
    """
    return look_up("augmentation", name, _AUGMENTATIONS)(size)


def _cropped(augmentation: Augmentation) -> Callable[[tuple[int, int] | None], Augmentation]:
    """The builder of an augmentation that keeps the size and is followed by a crop of the middle."""

    def build(size: tuple[int, int] | None) -> Augmentation:
        if size is None:
            return augmentation
        return lambda key, images: centre_crop(augmentation(key, images), size)

    return build


def _then(first: Augmentation, second: Augmentation) -> Augmentation:
    def both(key: jax.Array, images: jax.Array) -> jax.Array:
        first_key, second_key = jax.random.split(key)
        return second(second_key, first(first_key, images))

    return both


_AUGMENTATIONS: dict[str, Callable[[tuple[int, int] | None], Augmentation]] = {
    "none": _cropped(lambda key, images: images),
    "flip-crop": _cropped(_then(flip, padded_crop)),
    "resized-crop-flip": lambda size: _then(
        lambda key, images: random_resized_crop(key, images, size), flip
    ),
}

NAMES = tuple(_AUGMENTATIONS)
"""The names that `make` knows."""
