"""Encoded images, whatever lists them, decoded at once and brought to one common form.

The rules of the common form are those that the source `folder` states.
Shapes: C channels, S rows and columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from knowledge_recycling.data.images import FoundSplits, ImageSet, SplitName
from knowledge_recycling.data.sources import SourceConfig
from knowledge_recycling.data.sources._decoding import (
    Channels,
    Content,
    Decoded,
    decode,
    shorter_side,
)
from knowledge_recycling.data.sources._groups import with_groups, with_known_groups
from knowledge_recycling.errors import DataError

SMALLEST_SIDE, LARGEST_SIDE = 8, 64

Result = TypeVar("Result")


class SquaresConfig(SourceConfig):
    """What every source of encoded images understands: how they are brought to one form."""

    image_size: PositiveInt | None = None
    """Pixels per side after scaling; unset: the median shorter side of the images, rounded to a
    multiple of 4 between 8 and 64."""
    channels: Channels = "auto"
    """`grey`, `rgb`, or `auto`: grey if no image has colour."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, with a warning, instead of stopping."""


@dataclass(frozen=True)
class Item:
    """One image as listed."""

    name: str
    """Names it in errors and tables of groups; items of one name have the same content."""
    class_name: str
    content: Content
    group: str | None = None
    """Group (patient, slide...) that the list names."""


@dataclass(frozen=True)
class Decoder:
    """How the content of an item becomes an image; either may raise anything on damage."""

    shorter_side: Callable[[Content], int] = shorter_side
    decode: Callable[[Content, int, Channels], Decoded] = decode
    expected: str = "undamaged PNG, JPEG, TIFF or BMP files of 8 or 16 bit"
    """Completes "expected:" in the error about images that cannot be read."""


def decoded_splits(
    items: Mapping[SplitName, Sequence[Item]],
    config: SquaresConfig,
    where: object,
    *,
    classes: Sequence[str] | None = None,
    decoder: Decoder | None = None,
) -> FoundSplits:
    """Returns the splits of the listed images, in their order.

    Args:
        items: At least one image.
        config: The form; its `groups` file wins over the groups of the items or in the images.
        where: Named in errors.
        classes: Class names in order; unset: those of the items, sorted.
        decoder: Unset: that of image files.

    Raises:
        DataError: An image cannot be read (damaged, or above Pillow's limit of pixels), or has no
            group although others do.
    """
    decoder = decoder or Decoder()
    listed = [item for part in items.values() for item in part]
    images = _readable(listed, config, where, decoder)
    names = tuple(sorted({item.class_name for item in listed}) if classes is None else classes)
    form = _common_form(images, config)
    kept = {split: [each for each in part if each.name in images] for split, part in items.items()}
    found = {split: _image_set(part, images, names, form) for split, part in kept.items()}
    if config.groups is not None:
        keys = {split: [item.name for item in part] for split, part in kept.items()}
        return with_groups(found, keys, config.groups)
    own = {split: [_group(item, images) for item in part] for split, part in kept.items()}
    return with_known_groups(found, own, where)


def _group(item: Item, images: Mapping[str, Decoded]) -> str | None:
    return images[item.name].group if item.group is None else item.group


def _readable(
    items: Sequence[Item], config: SquaresConfig, where: object, decoder: Decoder
) -> dict[str, Decoded]:
    """Returns the decoded images by name, without those that are skipped."""

    def to_square(content: Content) -> Decoded:
        return decoder.decode(content, side, config.channels)

    contents = [item.content for item in items]
    with _warnings_of_decoders(), ThreadPoolExecutor() as pool:
        sides = pool.map(_attempt(decoder.shorter_side), contents)
        side = config.image_size or _typical_side(sides)
        attempts = list(pool.map(_attempt(to_square), contents))
    results = {item.name: attempt for item, attempt in zip(items, attempts, strict=True)}
    images = {name: got for name, got in results.items() if isinstance(got, Decoded)}
    problems = {name: str(got) for name, got in results.items() if isinstance(got, Exception)}
    if problems:
        may_skip = config.skip_unreadable and len(images) > 0
        _report(problems, where, decoder.expected, may_skip=may_skip)
    return images


def _attempt(work: Callable[[Content], Result]) -> Callable[[Content], Result | Exception]:
    """Returns `work` with errors as values, so that all damaged images are named at once."""

    def attempt(content: Content) -> Result | Exception:
        try:
            return work(content)
        except Exception as error:  # decoders raise a dozen types on damaged files
            return error

    return attempt


@contextmanager
def _warnings_of_decoders() -> Iterator[None]:
    """Makes Pillow raise at its limit of pixels, where it only warns up to twice that limit.

    Other warnings are silenced: they do not name the image, and may quote what it says of a person.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _typical_side(sides: Iterable[int | Exception]) -> int:
    known = [side for side in sides if isinstance(side, int)]
    typical = 4 * round(np.median(known or [LARGEST_SIDE]) / 4)
    return min(max(typical, SMALLEST_SIDE), LARGEST_SIDE)


def _report(problems: Mapping[str, str], where: object, expected: str, *, may_skip: bool) -> None:
    first = "; ".join(f"{name} ({problem})" for name, problem in list(problems.items())[:5])
    if may_skip:
        warnings.warn(f"unreadable images skipped: {len(problems)}: {first}", stacklevel=2)
        return
    raise DataError(
        f"images that cannot be read: {len(problems)} of the set",
        where=where,
        expected=expected,
        got=first,
        next_step="repair or remove them, or set `skip_unreadable = true` in the recipe",
    )


@dataclass(frozen=True)
class _Form:
    """What all images of the set are brought to."""

    shape: tuple[int, int, int]
    """C, S, S."""
    full_scale: int
    """Value in a 16-bit image that becomes 255."""


def _common_form(images: Mapping[str, Decoded], config: SquaresConfig) -> _Form:
    sizes = {image.pixels.shape for image in images.values()}
    num_channels = 3 if config.channels == "rgb" else max(size[0] for size in sizes)
    _, height, width = next(iter(sizes))
    peak = max(image.peak for image in images.values())
    return _Form((num_channels, height, width), 2 ** max(8, peak.bit_length()) - 1)


def _image_set(
    items: Sequence[Item], images: Mapping[str, Decoded], classes: tuple[str, ...], form: _Form
) -> ImageSet:
    stacked = np.empty((len(items), *form.shape), np.uint8)
    for position, item in enumerate(items):
        pixels = images[item.name].pixels
        if pixels.dtype == np.uint16:
            pixels = np.rint(np.minimum(pixels / form.full_scale, 1.0) * 255)
        stacked[position] = pixels  # one channel fills three
    labels = [classes.index(item.class_name) for item in items]
    return ImageSet(stacked, np.array(labels, np.int64), classes)
