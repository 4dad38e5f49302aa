"""One image file decoded to a small square: the stated rules of the `folder` source.

Shapes: C channels (1 grey, 3 RGB), S rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

Channels = Literal["auto", "grey", "rgb"]

_LARGEST_16_BIT = 65535


@dataclass(frozen=True)
class Decoded:
    """An image of either depth, and what is needed to bring a set of them to 8 bit."""

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """[C, S, S]; one channel if the image is grey or has no colour."""
    peak: int
    """Largest value of the file if it is 16 bit, else 0."""


def shorter_side(path: Path) -> int:
    """Returns the shorter side of the image in pixels, from the header alone."""
    with path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
        return min(image.size)


def decode(path: Path, side: int, channels: Channels) -> Decoded:
    """Returns the image upright, its centre square scaled (bicubic, antialiased) to `side`.

    Raises:
        Exception: Whatever Pillow raises on a damaged file, and `ValueError` for an image of
            several pages or with pixels that are neither 8 nor 16 bit.
    """
    # A stream, not a path: Pillow maps a path into memory and then scrambles grey TIFFs whose
    # orientation tag turns them by 90 degrees (seen with Pillow 13.0).
    with path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise ValueError("it has several pages, expected one")
        image.draft(None, (2 * side, 2 * side))  # decodes large JPEGs at a fraction of their size
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bit")
    return (
        _wide(upright, side) if upright.mode.startswith("I") else _narrow(upright, side, channels)
    )


def _wide(image: Image.Image, side: int) -> Decoded:
    values = image.convert("F")
    low, high = np.asarray(values).min(), np.asarray(values).max()
    if low < 0 or high > _LARGEST_16_BIT:
        raise ValueError(f"its pixels are {low:g} to {high:g}, expected 8 or 16 bit")
    square = np.asarray(_square(values, side)).clip(0, _LARGEST_16_BIT)  # bicubic overshoots
    return Decoded(np.rint(square)[None].astype(np.uint16), peak=int(high))


def _narrow(image: Image.Image, side: int, channels: Channels) -> Decoded:
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode != "L":
        image = image.convert("RGB").convert("L" if channels == "grey" else "RGB")
    pixels = np.atleast_3d(np.asarray(_square(image, side)))  # [S, S, C]
    has_colour = bool((pixels != pixels[..., :1]).any())
    return Decoded(np.moveaxis(pixels if has_colour else pixels[..., :1], 2, 0), peak=0)


def _square(image: Image.Image, side: int) -> Image.Image:
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
