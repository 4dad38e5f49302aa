"""Train, val and test of an image set; those that the source did not find are made.

Found splits are never changed. Missing ones are drawn from `train`, stratified by class and, where
images have groups (patients, slides), without cutting a group in two; every class gets into every
split that is made. `test` is drawn first, so that it does not depend on `val_fraction`.

Shapes: N images, C channels, H rows, W columns, K classes, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from knowledge_recycling.config import kind_module
from knowledge_recycling.data.images import FoundSplits, ImageSet, SplitName, Splits
from knowledge_recycling.data.sources import SourceConfig
from knowledge_recycling.errors import DataError
from knowledge_recycling.randomness import numpy_rng

Indices = npt.NDArray[np.int64]

GROUP_DRAWS = 256
"""Random draws of whole groups among which the best stratified one is taken."""


def load_splits(config: SourceConfig) -> Splits:
    """Returns the three splits of the set that `config` describes.

    Raises:
        RecipeError: The kind of source is unknown or needs an optional library.
        DataError: The set cannot be used as it is.
    """
    return complete(kind_module("data.sources", config.kind).load(config), config)


def complete(found: FoundSplits, config: SourceConfig) -> Splits:
    """Returns `found` with its missing splits drawn from `train`; the same for the same seed.

    Raises:
        DataError: The splits contradict each other, there is one class only, a class is absent
            from train, or a class has too few images or groups for the splits to make.
    """
    _check(found, config.kind)
    shares: dict[SplitName, float] = {"test": config.test_fraction, "val": config.val_fraction}
    missing = [name for name in shares if name not in found]
    _check_enough(found["train"], missing)
    parts = dict(found)
    share_left = 1.0
    for drawn, name in enumerate(missing):
        rng = numpy_rng(config.split_seed, "split", name)
        keep = len(missing) - drawn
        taken = _draw(parts["train"], shares[name] / share_left, keep, rng)
        parts[name] = parts["train"].subset(taken)
        rest = np.setdiff1d(np.arange(len(parts["train"])), taken, assume_unique=True)
        parts["train"] = parts["train"].subset(rest)
        share_left -= shares[name]
    return Splits(train=parts["train"], val=parts["val"], test=parts["test"])


def _draw(train: ImageSet, share: float, keep: int, rng: np.random.Generator) -> Indices:
    """Returns sorted indices of a stratified `share` of the images.

    At least one image (or group) of each class is taken, and at least `keep` are left.
    """
    if train.groups is None:
        return _draw_images(train, share, keep, rng)
    return _draw_groups(_by_group(train, train.groups), share, keep, rng)


def _draw_images(train: ImageSet, share: float, keep: int, rng: np.random.Generator) -> Indices:
    taken = []
    for label, count in enumerate(train.class_counts()):
        wanted = np.clip(round(share * count), 1, count - keep)
        taken.append(rng.permutation(np.flatnonzero(train.labels == label))[:wanted])
    return np.sort(np.concatenate(taken))


def _draw_groups(grouped: _ByGroup, share: float, keep: int, rng: np.random.Generator) -> Indices:
    num_groups = len(grouped.counts)
    wanted = np.clip(round(share * num_groups), 1, num_groups - keep)
    draws = (rng.permutation(num_groups)[:wanted] for _ in range(GROUP_DRAWS))
    misfit = partial(_misfit, grouped.counts, share=share, keep=keep)
    best = min(draws, key=misfit)
    if misfit(best).classes_left_out:
        raise DataError(
            "no draw of whole groups puts every class into every split",
            where="train",
            expected="several groups of each class",
            got=f"{num_groups} groups",
            next_step="make the splits yourself, or change `split_seed` or the fractions",
        )
    return np.flatnonzero(np.isin(grouped.position, best))


@dataclass(frozen=True)
class _ByGroup:
    position: Indices
    """[N], row of each image's group in `counts`."""
    counts: Indices
    """[G, K], images of each class in each group."""


def _by_group(train: ImageSet, groups: Indices) -> _ByGroup:
    distinct, position = np.unique(groups, return_inverse=True)
    cells = position * train.num_classes + train.labels
    counts = np.bincount(cells, minlength=len(distinct) * train.num_classes)
    return _ByGroup(position, counts.reshape(len(distinct), train.num_classes))


@dataclass(frozen=True, order=True)
class _Misfit:
    classes_left_out: int
    """Classes with no group on one side of the draw, or too few left for the draws to come."""
    deviation: float
    """Sum over classes of the squared difference between the share drawn and the share wanted."""


def _misfit(counts: Indices, draw: Indices, share: float, keep: int) -> _Misfit:
    drawn = counts[draw]
    groups_drawn = np.count_nonzero(drawn, axis=0)
    groups_left = np.count_nonzero(counts, axis=0) - groups_drawn
    deviation = drawn.sum(axis=0) / counts.sum(axis=0) - share
    return _Misfit(
        classes_left_out=int(((groups_drawn < 1) | (groups_left < keep)).sum()),
        deviation=float(np.square(deviation).sum()),
    )


def _check_enough(train: ImageSet, missing: Sequence[SplitName]) -> None:
    """Checks that each class has an image, or a group, for train and for each missing split."""
    unit = "images" if train.groups is None else "groups"
    counts = train.class_counts()
    if train.groups is not None:
        counts = np.count_nonzero(_by_group(train, train.groups).counts, axis=0)
    rarest = int(counts.argmin())
    if counts[rarest] <= len(missing):
        raise DataError(
            f"class '{train.class_names[rarest]}' has too few {unit} to be split",
            where="train",
            expected=f"at least {len(missing) + 1}: one for train, one each for "
            + " and ".join(missing),
            got=int(counts[rarest]),
            next_step="add images, merge or remove the class, or make the splits yourself",
        )


def _check(found: FoundSplits, source: str) -> None:
    """Checks what every later stage relies on."""
    if "train" not in found:
        raise DataError(
            "the set has no train split",
            where=f"source '{source}'",
            expected="train; val and test are made from it if they are absent",
            got=", ".join(found) or "no split",
            next_step="name the images to train on 'train'",
        )
    train = found["train"]
    for name, part in found.items():
        _check_part(part, f"split '{name}' of source '{source}'")
        _check_alike(train, part, f"split '{name}' of source '{source}'")
    if train.num_classes < 2:
        raise DataError(
            "the set has one class only",
            where=f"source '{source}'",
            expected="at least two classes",
            got=", ".join(train.class_names),
            next_step="add images of another class",
        )
    absent = [train.class_names[label] for label in np.flatnonzero(train.class_counts() == 0)]
    if absent:
        raise DataError(
            f"class '{absent[0]}' is absent from train",
            where=f"split 'train' of source '{source}'",
            expected="images of every class",
            got=f"no image of {', '.join(absent)}",
            next_step="add images of the class to train, or remove it from the other splits",
        )
    for name, part in found.items():
        _check_varied(part, f"split '{name}' of source '{source}'")


def _check_part(part: ImageSet, where: str) -> None:
    images, num_images = part.images, len(part.labels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            "the images have a wrong form",
            where=where,
            expected="uint8 [N,C,H,W] with one or three channels",
            got=f"{images.dtype} {list(images.shape)}",
            next_step="correct the source",
        )
    if num_images == 0 or len(images) != num_images:
        raise DataError(
            "the split is empty" if num_images == 0 else "not every image has a label",
            where=where,
            expected="one label per image, at least one image",
            got=f"{len(images)} images, {num_images} labels",
            next_step="add images, or remove the split so that it is made from train",
        )
    if part.labels.min() < 0 or part.labels.max() >= part.num_classes:
        raise DataError(
            "a label has no class name",
            where=where,
            expected=f"0 to {part.num_classes - 1}",
            got=f"{part.labels.min()} to {part.labels.max()}",
            next_step="correct the source",
        )


def _check_varied(part: ImageSet, where: str) -> None:
    present = np.unique(part.labels)
    if len(present) < 2:
        raise DataError(
            "the split has images of one class only",
            where=where,
            expected="images of at least two classes",
            got=part.class_names[present[0]],
            next_step="add images of other classes, or remove the split so that it is made",
        )


def _check_alike(train: ImageSet, part: ImageSet, where: str) -> None:
    if part.shape != train.shape:
        raise DataError(
            "the splits differ in shape",
            where=where,
            expected=f"channels, height, width {train.shape} as in train",
            got=part.shape,
            next_step="resize the images alike",
        )
    if part.class_names != train.class_names:
        raise DataError(
            "the splits differ in their classes",
            where=where,
            expected=", ".join(train.class_names),
            got=", ".join(part.class_names),
            next_step="correct the source",
        )
