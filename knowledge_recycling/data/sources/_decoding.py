"""One image file decoded to a small square: the rules that the source `folder` states.

Shapes: C channels (1 grey, 3 RGB), S rows and columns.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

Channels = Literal["auto", "grey", "rgb"]

Content = Path | bytes
"""An encoded image: a file, or what one would hold."""

LARGEST_16_BIT = 65535


@dataclass(frozen=True)
class Decoded:
    """An image of either depth, and what is needed to bring a set of them to 8 bit."""

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """[C, S, S]; one channel if the image is grey or has no colour."""
    peak: int
    """Largest value of the file if it is 16 bit, else 0."""
    group: str | None = None
    """Group (patient, slide...) that the file itself names."""


def shorter_side(content: Content) -> int:
    """Returns the shorter side of the image in pixels, from the header alone."""
    with _stream(content) as stream, Image.open(stream, formats=FORMATS) as image:
        return min(image.size)


def _stream(content: Content) -> BinaryIO:
    if not isinstance(content, Path):
        return io.BytesIO(content)
    if content.exists() and not content.is_file():
        raise ValueError("it is no file")  # opening a pipe would wait for ever
    return content.open("rb")


def decode(content: Content, side: int, channels: Channels) -> Decoded:
    """Returns the image upright, its centre square scaled (bicubic, antialiased) to `side`.

    Raises:
        Exception: Whatever Pillow raises on a damaged file, and `ValueError` for an image of
            several pages or frames, or with pixels that are neither 8 nor 16 bit.
    """
    # A stream, not a path: Pillow maps a path into memory and then scrambles grey TIFFs whose
    # orientation tag turns them by 90 degrees (seen with Pillow 13.0).
    with _stream(content) as stream, Image.open(stream, formats=FORMATS) as image:
        if image.format in ("TIFF", "PNG") and getattr(image, "n_frames", 1) > 1:
            raise ValueError("it has several pages or frames, expected one")
        image.draft(None, (2 * side, 2 * side))  # decodes large JPEGs at a fraction of their size
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bit")
    if upright.mode.startswith("I"):
        return wide(upright.convert("F"), side)
    return narrow(upright, side, channels)


def wide(values: Image.Image, side: int) -> Decoded:
    """Returns the 16-bit square of a grey image of floats (mode F).

    Raises:
        ValueError: A value is below 0 or above 65535.
    """
    low, high = np.asarray(values).min(), np.asarray(values).max()
    if low < 0 or high > LARGEST_16_BIT:
        raise ValueError(f"its pixels are {low:g} to {high:g}, expected 8 or 16 bit")
    square = np.asarray(centre_square(values, side)).clip(0, LARGEST_16_BIT)  # bicubic overshoots
    return Decoded(np.rint(square)[None].astype(np.uint16), peak=int(high))


def narrow(image: Image.Image, side: int, channels: Channels) -> Decoded:
    """Returns the 8-bit square of an image in any of Pillow's 8-bit modes."""
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode != "L":
        image = image.convert("RGB").convert("L" if channels == "grey" else "RGB")
    pixels = np.atleast_3d(np.asarray(centre_square(image, side)))  # [S, S, C]
    has_colour = bool((pixels != pixels[..., :1]).any())
    return Decoded(np.moveaxis(pixels if has_colour else pixels[..., :1], 2, 0), peak=0)


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """Returns the centre square of the image, scaled (bicubic, antialiased) to `side`."""
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
