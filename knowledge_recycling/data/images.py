"""Labelled image sets in memory or memory-mapped.

Shapes: N images, C channels (1 grey, 3 RGB), H rows, W columns, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True)
class ImageSet:
    """Images with one label each; what every stage reads and synthesis writes."""

    images: npt.NDArray[np.uint8]
    """[N, C, H, W], 0 to 255; may be a `numpy.memmap`."""
    labels: npt.NDArray[np.int64]
    """[N], 0 to K-1."""
    class_names: tuple[str, ...]
    """K names."""
    groups: npt.NDArray[np.int64] | None = None
    """[N], images of one group (patient, slide) must stay in one split; `None`: no groups."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def class_counts(self) -> npt.NDArray[np.int64]:
        """Returns the number of images of each class, [K]."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def subset(self, indices: npt.NDArray[np.int64]) -> ImageSet:
        """Returns the images at `indices`, in that order."""
        groups = None if self.groups is None else self.groups[indices]
        return replace(
            self, images=self.images[indices], labels=self.labels[indices], groups=groups
        )

    def evenly(self, count: int) -> ImageSet:
        """Returns `count` of the images, evenly spaced, or all if there are no more."""
        return self.subset(evenly_spaced(len(self), count))

    def digest(self) -> str:
        """Returns the SHA-256 of images, labels and class names; the same for equal content."""
        content = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        for start in range(0, len(self), 4096):
            content.update(np.ascontiguousarray(self.images[start : start + 4096]).data)
        content.update(np.ascontiguousarray(self.labels).data)
        return content.hexdigest()


@dataclass(frozen=True)
class Splits:
    """The three parts of a set: members (train), selection (val), the one final look (test)."""

    train: ImageSet
    val: ImageSet
    test: ImageSet

    def digests(self) -> dict[str, str]:
        """Returns the digest of each split, by name."""
        return {name: part.digest() for name, part in vars(self).items()}


FoundSplits = Mapping[SplitName, ImageSet]
"""What a data source found: at least `train`; `data.splits.complete` makes the missing ones."""


def evenly_spaced(size: int, count: int) -> npt.NDArray[np.int64]:
    """Returns `count` rows of `size`, evenly spaced, or all if there are no more.

    >>> evenly_spaced(10, 4).tolist(), evenly_spaced(3, 4).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(0, size - 1, min(count, size)).astype(np.int64)


def to_unit(images: npt.NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """Returns uint8 images as float32 in [-1, 1], channels-last in memory; shape unchanged.

    >>> to_unit(np.array([[[[0, 255]]]], dtype=np.uint8)).flatten().tolist()
    [-1.0, 1.0]
    """
    tensor = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
    unit = tensor.to(torch.float32).div_(127.5).sub_(1.0)
    return unit.contiguous(memory_format=torch.channels_last)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Returns images in [-1, 1] as uint8, rounded to nearest; values outside are clipped."""
    return images.float().add(1.0).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)
