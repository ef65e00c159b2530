"""Encoded images (JPEG, PNG ...) to pixels, on the host, with Pillow."""

import io
import struct

import numpy as np
from PIL import Image


class UnreadableImage(ValueError):
    """The bytes are no image, or a damaged one."""


def decode(content: bytes, side: int | None = None) -> np.ndarray:
    """Decodes an image to RGB, and with a side to a square.

    The square is torchvision's Resize(side) and CenterCrop(side): the shorter side is brought to
    `side` (bilinear, antialiased), and of the longer the middle is kept.

    Args:
      content: The encoded image.
      side: Height and width of the result in pixels; None keeps the image's own.

    Returns:
      `[H, W, 3]` uint8.

    Raises:
      UnreadableImage: It cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in _EIGHT_BITS:
                raise UnreadableImage(
                    f"has pixels of mode {image.mode}, which do not fit into 8 bits; convert it"
                )
            image = image.convert("RGB")
    except UnreadableImage:
        raise
    # What Pillow's readers raise on damaged input, beyond its own OSErrors.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError) as error:
        raise UnreadableImage(f"cannot be decoded ({error})") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"is too large ({error})") from error
    return np.asarray(image if side is None else square(image, side))


# Pillow's modes whose values are of 0 to 255; it would cut others off there without a word.
_EIGHT_BITS = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
)


def square(image: Image.Image, side: int) -> Image.Image:
    """Resizes the shorter side to `side` pixels and keeps the middle of the longer."""
    width, height = image.size
    if (width, height) == (side, side):
        return image
    short = min(width, height)
    resized = (side, side * height // short) if width == short else (side * width // short, side)
    image = image.resize(resized, Image.Resampling.BILINEAR)
    left, top = round((resized[0] - side) / 2), round((resized[1] - side) / 2)
    return image.crop((left, top, left + side, top + side))
