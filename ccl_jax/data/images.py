"""Encoded images (JPEG, PNG ...) to pixels, on the host, with Pillow."""

import contextlib
import io
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class UnreadableImage(ValueError):
    """The bytes are no image, or a damaged one."""


def decode(content: bytes, side: int | None = None, area: bool = False) -> np.ndarray:
    """Decodes an image to RGB, upright as its EXIF says, and with a side to a square.

    The square is torchvision's Resize(side) and CenterCrop(side): the shorter side is brought to
    `side` (bilinear, antialiased, but for `area`), and of the longer the middle is kept. Of several
    frames the first is taken.

    Args:
      content: The encoded image.
      side: Height and width of the result in pixels; None keeps the image's own.
      area: As in `square`.

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
            image.load()  # First, so that no error of its pixels is taken for one of its EXIF.
            _turn_upright(image)
            image = image.convert("RGB")
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:  # Its text has the address of an object in it.
        raise UnreadableImage("cannot be decoded (no image of a known format)") from error
    except _DAMAGE as error:
        raise UnreadableImage(f"cannot be decoded ({error})") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"is too large ({error})") from error
    return np.asarray(image if side is None else square(image, side, area))


# What Pillow's readers raise on damaged input, beyond its own OSErrors.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError)


def _turn_upright(image: Image.Image) -> None:
    """Turns an image, in place, as its EXIF orientation says; EXIF that cannot be read says nothing."""
    with contextlib.suppress(*_DAMAGE, KeyError, TypeError, ZeroDivisionError):
        ImageOps.exif_transpose(image, in_place=True)


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


def square(image: Image.Image, side: int, area: bool = False) -> Image.Image:
    """Resizes the shorter side to `side` pixels and keeps the middle of the longer.

    Args:
      image: Of any size.
      side: Of the result.
      area: Where it shrinks, a pixel is the mean of the area that it covers, as images of a few pixels
        want it: one that had been enlarged comes back. Bilinear, a pixel takes half of its neighbours
        along, which is smooth in a photograph and blurs a digit of 8 x 8.
    """
    width, height = image.size
    if (width, height) == (side, side):
        return image
    short = min(width, height)
    if max(width, height) > _THIN * short:
        image = _middle(image, _THIN * short)
        width, height = image.size
    resized = (side, side * height // short) if width == short else (side * width // short, side)
    kind = Image.Resampling.BOX if area and short > side else Image.Resampling.BILINEAR
    image = image.resize(resized, kind)
    left, top = round((resized[0] - side) / 2), round((resized[1] - side) / 2)
    return image.crop((left, top, left + side, top + side))


# No photograph is longer than so many times its shorter side. Of what is, the ends are cut off before
# it is scaled, as one of 1 x 6000 pixels would take gigabytes and give a few rows of its middle.
_THIN = 16


def _middle(image: Image.Image, longest: int) -> Image.Image:
    """The middle `longest` pixels (or one more, to be the middle) of a longer side."""
    cut = [max(0, size - longest) // 2 for size in image.size]
    return image.crop((*cut, image.width - cut[0], image.height - cut[1]))
