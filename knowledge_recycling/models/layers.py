"""Layers and initial weights that several kinds of networks share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Returns `layer` with zero weights, so that a residual branch starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class Pyramid:
    """The resolutions of a network that halves or doubles maps, from about 4x4 positions up."""

    base: tuple[int, int]
    """Rows and columns of the coarsest maps, 4 or fewer."""
    sides: tuple[int, ...]
    """Longer side of the maps of each resolution, the coarsest first."""

    @property
    def unit(self) -> int:
        """Pixels per position of the coarsest maps."""
        return int(2 ** (len(self.sides) - 1))

    @property
    def base_size(self) -> int:
        """Positions of the coarsest maps."""
        return self.base[0] * self.base[1]


def pyramid_of(shape: tuple[int, int, int]) -> Pyramid:
    """Returns the resolutions for images of `shape` (C,H,W), the finest no smaller than they.

    >>> pyramid_of((1, 28, 28))
    Pyramid(base=(4, 4), sides=(4, 8, 16, 32))
    """
    height, width = shape[1:]
    levels = max(1, math.ceil(math.log2(max(height, width) / 4)))
    base = (-(-height // 2**levels), -(-width // 2**levels))
    return Pyramid(base, tuple(max(base) * 2**level for level in range(levels + 1)))


def padded_to(images: Tensor, unit: int) -> Tensor:
    """Returns images [N,C,H,W] with zeros added so that both sides are multiples of `unit`.

    As many are added before as after, but for one.
    """
    height, width = images.shape[2:]
    rows, columns = -height % unit, -width % unit
    sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return functional.pad(images, sides)


def cropped_to(images: Tensor, height: int, width: int) -> Tensor:
    """Returns the middle of images [N,C,*,*]: what `padded_to` added is taken away."""
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]
