"""The set as seen, before any training: counts, ranges, duplicates, and what to worry about.

Shapes: N images, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from knowledge_recycling.data.images import ImageSet, Splits
from knowledge_recycling.errors import printable

Prints = npt.NDArray[np.uint64]
"""A fingerprint of each image, [N]."""

CHUNK = 1024
FEW_IMAGES = 10
"""A class with fewer training images than this is pointed out."""


@dataclass(frozen=True)
class SplitSummary:
    """One split in numbers."""

    name: str
    class_counts: tuple[int, ...]
    """K numbers of images."""
    low: int
    """Smallest pixel value, 0 to 255."""
    high: int
    """Largest pixel value, 0 to 255."""
    mean: float
    """Mean pixel value, 0 to 255."""
    num_duplicates: int
    """Images identical to an earlier one of the same split."""
    num_groups: int | None
    """Distinct groups, `None` without groups."""

    @property
    def num_images(self) -> int:
        """Images of all classes."""
        return sum(self.class_counts)


@dataclass(frozen=True)
class Overlap:
    """What two splits have in common, which makes the second easier than new images are."""

    first: str
    second: str
    num_images: int
    """Images of the second split that are identical to one of the first."""
    num_groups: int | None
    """Groups with images in both, `None` unless both have groups."""


@dataclass(frozen=True)
class Inspection:
    """The set as seen."""

    shape: tuple[int, int, int]
    """Channels, height and width."""
    class_names: tuple[str, ...]
    splits: tuple[SplitSummary, ...]
    """train, val, test."""
    overlaps: tuple[Overlap, ...]
    """train-val, train-test, val-test."""
    num_contradictions: int
    """Distinct images that occur with more than one label, over all splits."""
    rare_classes: tuple[str, ...]
    """Classes with fewer than `FEW_IMAGES` training images."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to worry about, a sentence each."""
        return tuple(_warnings(self))


def inspect(splits: Splits) -> Inspection:
    """Returns what there is to know about a set before training on it."""
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    pixels = {name: _read(part) for name, part in parts.items()}
    prints = {name: each.prints for name, each in pixels.items()}
    train = splits.train
    rare = np.flatnonzero(train.class_counts() < FEW_IMAGES)
    return Inspection(
        shape=train.shape,
        class_names=train.class_names,
        splits=tuple(_summary(name, part, pixels[name]) for name, part in parts.items()),
        overlaps=tuple(_overlap(pair, parts, prints) for pair in combinations(parts, 2)),
        num_contradictions=_contradictions(parts, prints),
        rare_classes=tuple(train.class_names[label] for label in rare),
    )


def fingerprints(part: ImageSet) -> Prints:
    """Returns a number [N] for each image, equal where images are identical (8-byte hashes)."""
    return _read(part).prints


@dataclass(frozen=True)
class _Pixels:
    """What one pass over a split's images tells."""

    prints: Prints
    low: int
    high: int
    mean: float


def _read(part: ImageSet) -> _Pixels:
    """Reads each image once, a few at a time: the set may be larger than the memory."""
    prints = np.empty(len(part), dtype=np.uint64)
    low, high, total = 255, 0, 0
    for start in range(0, len(part), CHUNK):
        images = np.ascontiguousarray(part.images[start : start + CHUNK])
        prints[start : start + CHUNK] = [_fingerprint(image) for image in images]
        low, high = min(low, int(images.min())), max(high, int(images.max()))
        total += int(images.sum(dtype=np.uint64))
    return _Pixels(prints, low, high, total / part.images.size)


def _fingerprint(image: npt.NDArray[np.uint8]) -> int:
    """Returns a hash of 8 bytes, equal where images are identical.

    That two of a million different images share one has a chance of 3e-8.
    """
    return int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest())


def _summary(name: str, part: ImageSet, pixels: _Pixels) -> SplitSummary:
    return SplitSummary(
        name=name,
        class_counts=tuple(part.class_counts().tolist()),
        low=pixels.low,
        high=pixels.high,
        mean=pixels.mean,
        num_duplicates=len(part) - len(np.unique(pixels.prints)),
        num_groups=None if part.groups is None else len(np.unique(part.groups)),
    )


def _overlap(
    pair: tuple[str, str], parts: Mapping[str, ImageSet], prints: Mapping[str, Prints]
) -> Overlap:
    first, second = pair
    return Overlap(
        first=first,
        second=second,
        num_images=int(np.isin(prints[second], prints[first]).sum()),
        num_groups=_shared_groups(parts[first], parts[second]),
    )


def _shared_groups(first: ImageSet, second: ImageSet) -> int | None:
    if first.groups is None or second.groups is None:
        return None
    return len(np.intersect1d(first.groups, second.groups))


def _contradictions(parts: Mapping[str, ImageSet], prints: Mapping[str, Prints]) -> int:
    """Returns the number of distinct images with more than one label."""
    labelled = [
        np.unique(
            np.concatenate([prints[name][part.labels == label] for name, part in parts.items()])
        )
        for label in range(parts["train"].num_classes)
    ]
    _, labels = np.unique(np.concatenate(labelled), return_counts=True)
    return int((labels > 1).sum())


def _warnings(seen: Inspection) -> Iterator[str]:
    for name in seen.rare_classes:
        count = seen.splits[0].class_counts[seen.class_names.index(name)]
        yield f"Class '{name}' has only {_number(count, 'training image')}."
    for split in seen.splits:
        yield from _warnings_of_split(split, seen.class_names)
    for overlap in seen.overlaps:
        yield from _warnings_of_overlap(overlap)
    if seen.num_contradictions:
        yield f"Labels contradict each other on {_number(seen.num_contradictions, 'image')}."


def _warnings_of_split(split: SplitSummary, class_names: Sequence[str]) -> Iterator[str]:
    if split.num_duplicates:
        yield f"{split.name} repeats {_number(split.num_duplicates, 'image')} of its own."
    if split.low == split.high:
        yield f"All pixels of {split.name} have the same value."
    for name, count in zip(class_names, split.class_counts, strict=True):
        if count == 0:
            yield f"Class '{name}' has no {split.name} image: nothing can be said about it."


def _warnings_of_overlap(overlap: Overlap) -> Iterator[str]:
    for count, noun in ((overlap.num_images, "image"), (overlap.num_groups, "group")):
        if count:
            yield (
                f"{overlap.first} and {overlap.second} share {_number(count, noun)}: "
                f"results on {overlap.second} will look too good."
            )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def render(inspection: Inspection) -> RenderableType:
    """Returns the inspection as tables and sentences for a `rich` console."""
    return Group(
        _class_table(inspection),
        _split_table(inspection),
        _overlap_table(inspection),
        *(Text(f"! {printable(warning)}", style="yellow") for warning in inspection.warnings),
    )


def _class_table(inspection: Inspection) -> Table:
    table = _table("class", "images per class", [split.name for split in inspection.splits])
    counts = zip(*(split.class_counts for split in inspection.splits), strict=True)
    for name, row in zip(inspection.class_names, counts, strict=True):
        table.add_row(Text(printable(name)), *map(str, row))
    table.add_section()
    table.add_row("all", *(str(split.num_images) for split in inspection.splits))
    return table


def _split_table(inspection: Inspection) -> Table:
    channels, height, width = inspection.shape
    title = f"{height}x{width} pixels, {'grey' if channels == 1 else 'RGB'}"
    table = _table("split", title, ["darkest", "brightest", "mean", "repeated", "groups"])
    for split in inspection.splits:
        low, high, mean = str(split.low), str(split.high), f"{split.mean:.1f}"
        repeated, groups = str(split.num_duplicates), _optional(split.num_groups)
        table.add_row(split.name, low, high, mean, repeated, groups)
    return table


def _overlap_table(inspection: Inspection) -> Table:
    table = _table("splits", "in both", ["identical images", "groups"])
    for overlap in inspection.overlaps:
        pair = f"{overlap.first}, {overlap.second}"
        table.add_row(pair, str(overlap.num_images), _optional(overlap.num_groups))
    return table


def _optional(number: int | None) -> str:
    return "-" if number is None else str(number)


def _table(first: str, title: str, numbers: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table
