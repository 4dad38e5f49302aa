"""Augmentation of whole batches, by name, and the flips that a set is measured to allow.

Every image of a batch gets its own draw. Draws come from a CPU generator and only then move to the
images' device, so that a processor and a GPU augment alike.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator
from torch import Tensor
from torch.nn import functional

from knowledge_recycling.config import did_you_mean
from knowledge_recycling.data.images import ImageSet, evenly_spaced, to_unit
from knowledge_recycling.errors import RecipeError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

MAX_SHIFT = 1 / 8
"""Of the side."""
MAX_DEGREES = 15.0
MAX_CONTRAST = 0.2
MAX_BRIGHTNESS = 0.1
NOISE_STD = 0.05
CORRUPTION_CONTRAST, CORRUPTION_BRIGHTNESS, CORRUPTION_NOISE = 0.4, 0.25, 0.1

NEIGHBOURS = 10
FOLDS = 5
THUMBNAIL_SIDE = 14
MAX_TRAIN, MAX_VAL = 3000, 1000
"""Images that the flips are measured on."""
MIN_IMAGES = 50
"""Fewer give no evidence for a flip."""
MIN_EVIDENCE = 5.0
"""Standard errors by which upright images must be above chance."""
MIN_KEPT = 0.9
"""Of what upright images are above chance; measured sets keep either 0.94 and more (a flipped blood
cell, fundus or, left to right, breast ultrasound) or 0.86 and less (chests, clothes, digits)."""


def augment(images: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Returns the images after the augmentations `names`, applied in that order.

    Args:
        images: [N,C,H,W], floating point in [-1, 1]; not changed.
        names: Of `AUGMENTATIONS`; none returns the images as they are.
        generator: On the CPU, whatever the images' device.

    Returns:
        Images of the same shape, type, device and range, channels-last in memory.

    Raises:
        RecipeError: A name is unknown, or the images are not square and `rot90` is asked for.
    """
    for name in names:
        images = _FUNCTIONS[known_augmentation(name)](images, generator)
    return images.contiguous(memory_format=torch.channels_last)


def augment_half(images: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Returns the images, about half of them, drawn by lot, after `augment`; see there."""
    if not names:
        return images
    changed = augment(images, names, generator)
    return torch.where(_coins(images, generator), changed, images)


def known_augmentation(name: str) -> str:
    """Returns `name` itself.

    Raises:
        RecipeError: There is no such augmentation.
    """
    if name not in _FUNCTIONS:
        raise RecipeError(
            f"unknown augmentation '{name}'",
            expected=f"one of {', '.join(AUGMENTATIONS)}",
            got=name,
            next_step=did_you_mean(name, AUGMENTATIONS),
        )
    return name


def _hflip(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where(_coins(images, generator), images.flip(3), images)


def _vflip(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where(_coins(images, generator), images.flip(2), images)


def _rot90(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turns each image by 0, 90, 180 or 270 degrees."""
    height, width = images.shape[2:]
    if height != width:
        raise RecipeError(
            "the augmentation 'rot90' needs square images",
            expected="as many rows as columns",
            got=f"{height} rows, {width} columns",
            next_step="remove 'rot90' from the augmentations, or use 'hflip' and 'vflip'",
        )
    pixels = torch.arange(height * width, device=images.device).view(height, width)
    turned = torch.stack([pixels.rot90(turns) for turns in range(4)])  # [4, H, W]
    turns = torch.randint(4, (len(images),), generator=generator).to(images.device)
    return _take_pixels(images, turned[turns])


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image by up to an eighth of its side; what moves in is mirrored at the edge."""
    height, width = images.shape[2:]
    rows = _shifted_positions(len(images), height, generator).to(images.device)
    columns = _shifted_positions(len(images), width, generator).to(images.device)
    return _take_pixels(images, rows[:, :, None] * width + columns[:, None, :])


def _shifted_positions(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Returns which row (or column) each of `side` positions is taken from, [count, side]."""
    reach = int(side * MAX_SHIFT)
    offsets = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
    last = side - 1
    return last - (last - (torch.arange(side) + offsets).abs()).abs()


def _take_pixels(images: Tensor, pixels: Tensor) -> Tensor:
    """Returns images whose pixel [n,h,w] is the input's pixel number `pixels[n,h,w]`, row-major."""
    count, channels, height, width = images.shape
    flat = images.permute(0, 2, 3, 1).reshape(-1, channels)  # [N*H*W, C]
    first = torch.arange(count, device=images.device)[:, None, None] * (height * width)
    taken = flat.index_select(0, (first + pixels).flatten())
    return taken.view(count, height, width, channels).permute(0, 3, 1, 2)


def _rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turns each image by up to 15 degrees either way; what turns in is mirrored at the edge."""
    height, width = images.shape[2:]
    angles = _uniform(len(images), MAX_DEGREES * math.pi / 180, generator)
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # Grid coordinates run from -1 to 1 along both sides, however long: hence the ratio of sides.
    across = torch.stack([cosine, -sine * (height / width), zero], dim=1)
    down = torch.stack([sine * (width / height), cosine, zero], dim=1)
    matrices = torch.stack([across, down], dim=1).to(images)  # [N, 2, 3]
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Replaces a square of half the side by the image's mean (DeVries 2017, arXiv 1708.04552).

    Its centre may be any pixel, so that parts of it may lie outside.
    """
    count, channels, height, width = images.shape
    rows = _hidden_positions(count, height, generator).to(images)
    columns = _hidden_positions(count, width, generator).to(images)
    # Whole rows of channels-last pixels and a float mask: `where` with a mask that repeats over the
    # channels is ten times slower. A weight of 0 or 1 makes `lerp` exact.
    lines = images.permute(0, 2, 3, 1).reshape(count, height, width * channels)
    hidden = rows[:, :, None] * columns.repeat_interleave(channels, dim=1)[:, None, :]
    mean = images.mean(dim=(2, 3)).repeat(1, width)[:, None, :]  # [N, 1, W*C]
    return torch.lerp(lines, mean, hidden).view(count, height, width, channels).permute(0, 3, 1, 2)


def _hidden_positions(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Returns which of `side` positions are within half a side around a random one."""
    length = side // 2
    starts = torch.randint(side, (count, 1), generator=generator) - length // 2
    positions = torch.arange(side)
    return (positions >= starts) & (positions < starts + length)


def _intensity(images: Tensor, generator: torch.Generator) -> Tensor:
    """Scales contrast about the image's mean by 0.8 to 1.2 and adds up to 0.1 either way."""
    contrast = 1 + _uniform(len(images), MAX_CONTRAST, generator).to(images)[:, None, None, None]
    brightness = _uniform(len(images), MAX_BRIGHTNESS, generator).to(images)[:, None, None, None]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return torch.addcmul(mean + brightness, images - mean, contrast).clamp_(-1, 1)


def _noise(images: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator).to(images)
    return torch.add(images, noise, alpha=NOISE_STD).clamp_(-1, 1)


def _corrupt(images: Tensor, generator: torch.Generator) -> Tensor:
    """Changes contrast, brightness and sharpness and adds noise, as another device might.

    Mild forms of four corruptions of Hendrycks & Dietterich 2019 (arXiv 1903.12261): contrast about
    the mean by 0.6 to 1.4, brightness by up to 0.25, a share of up to 1 of a 3x3 blur, noise of a
    standard deviation of up to 0.1.
    """
    count, sides = len(images), (1, 2, 3)
    draws = torch.rand(4, count, 1, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator).to(images) * CORRUPTION_NOISE
    contrast, brightness, blur, loudness = draws.to(images)
    mean = images.mean(dim=sides, keepdim=True)
    images = (images - mean) * (1 + CORRUPTION_CONTRAST * (2 * contrast - 1)) + mean
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, blurred, blur) + CORRUPTION_BRIGHTNESS * (2 * brightness - 1)
    return torch.addcmul(images, loudness, noise).clamp_(-1, 1)


def _coins(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns one fair coin per image, [N,1,1,1]."""
    return torch.randint(2, (len(images), 1, 1, 1), generator=generator).bool().to(images.device)


def _uniform(count: int, reach: float, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(count, generator=generator) - 1) * reach


_FUNCTIONS: dict[str, Augmentation] = {
    "hflip": _hflip,
    "vflip": _vflip,
    "rot90": _rot90,
    "shift": _shift,
    "rotate": _rotate,
    "cutout": _cutout,
    "intensity": _intensity,
    "noise": _noise,
    "corrupt": _corrupt,
}

AUGMENTATIONS = tuple(_FUNCTIONS)
"""Names of all augmentations."""

AugmentationName = Annotated[str, AfterValidator(known_augmentation)]
"""A recipe field's type: a name of `AUGMENTATIONS`, checked when the recipe is read."""


def measured_symmetries(train: ImageSet, val: ImageSet) -> tuple[str, ...]:
    """Returns which of "hflip" and "vflip" leave the class of an image recognisable.

    Measured is the share of an image's ten nearest neighbours that have its class, averaged over
    classes, above chance; neighbours are upright and come from the other folds of both splits (a
    small validation split alone could not tell). A flip is allowed if flipped images keep 90 % of
    it. Where upright images are not clearly above chance there is no evidence, hence no flip. So a
    flip is withheld also where it keeps the meaning but gives images unlike any in the set, such
    as a mirrored chest.
    """
    sample = _pooled(_sampled(train, MAX_TRAIN), _sampled(val, MAX_VAL))
    if len(sample.labels) < MIN_IMAGES:
        return ()
    votes = _votes(sample)
    upright = _skill(votes["upright"], sample.labels)
    if upright.value <= MIN_EVIDENCE * upright.standard_error:
        return ()
    kept = {name: _skill(votes[name], sample.labels).value for name in ("hflip", "vflip")}
    return tuple(name for name, skill in kept.items() if skill >= MIN_KEPT * upright.value)


@dataclass(frozen=True)
class _Sample:
    images: Tensor
    """[N,C,h,w], reduced to at most 14 by 14."""
    labels: npt.NDArray[np.int64]
    """[N]"""


@dataclass(frozen=True)
class _Skill:
    value: float
    """Mean over classes of the votes, minus chance."""
    standard_error: float


def _sampled(image_set: ImageSet, limit: int) -> _Sample:
    """Returns at most `limit` images, evenly spaced through the classes, each in its share."""
    by_class = np.argsort(image_set.labels, kind="stable")
    height, width = (min(THUMBNAIL_SIDE, side) for side in image_set.shape[1:])
    chosen = by_class[evenly_spaced(len(by_class), limit)]
    thumbnails = [
        functional.adaptive_avg_pool2d(to_unit(image_set.images[part]), (height, width))
        for part in np.array_split(chosen, math.ceil(len(chosen) / 256))
    ]
    return _Sample(torch.cat(thumbnails), image_set.labels[chosen])


def _pooled(train: _Sample, val: _Sample) -> _Sample:
    return _Sample(
        torch.cat([train.images, val.images]), np.concatenate([train.labels, val.labels])
    )


def _votes(sample: _Sample) -> dict[str, npt.NDArray[np.float64]]:
    """Returns by view the share [N] of each image's neighbours in other folds with its class."""
    from sklearn.neighbors import NearestNeighbors

    labels = sample.labels
    fold = np.empty_like(labels)
    fold[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS
    views = {"upright": [], "hflip": [3], "vflip": [2]}
    votes = {name: np.zeros(len(labels)) for name in views}
    for held_out in (fold == each for each in range(FOLDS)):
        nearest = NearestNeighbors(n_neighbors=NEIGHBOURS)
        nearest.fit(sample.images[~held_out].flatten(1).numpy())
        for name, axes in views.items():
            queries = sample.images[held_out].flip(axes).flatten(1).numpy()
            found = labels[~held_out][nearest.kneighbors(queries, return_distance=False)]
            votes[name][held_out] = np.mean(found == labels[held_out, None], axis=1)
    return votes


def _skill(votes: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> _Skill:
    by_class = [votes[labels == k] for k in np.unique(labels)]
    variance = sum(float(np.var(each)) / len(each) for each in by_class)
    return _Skill(
        value=float(np.mean([np.mean(each) for each in by_class])) - 1 / len(by_class),
        standard_error=math.sqrt(variance) / len(by_class),
    )
