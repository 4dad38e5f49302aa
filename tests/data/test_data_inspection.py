"""The inspection against slow comparisons of every image with every other."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from knowledge_recycling.data.images import ImageSet, Splits
from knowledge_recycling.data.inspection import inspect, render
from knowledge_recycling.data.sources.digits import Config as Digits
from knowledge_recycling.data.sources.npz import Config as Archive
from knowledge_recycling.data.splits import load_splits

REAL = Path(__file__).parents[3] / "shared" / "data"


def make_set(
    seed: int, size: int, *, levels: int = 2, groups: np.ndarray | None = None
) -> ImageSet:
    rng = np.random.default_rng(seed)  # few levels and pixels: many identical images
    images = rng.integers(0, levels, (size, 1, 2, 3), dtype=np.uint8)
    return ImageSet(images, rng.integers(0, 3, size), ("a", "b", "c"), groups)


@pytest.fixture
def splits() -> Splits:
    return Splits(make_set(0, 60), make_set(1, 30), make_set(2, 40))


def in_order(splits: Splits) -> tuple[ImageSet, ...]:
    return splits.train, splits.val, splits.test


def same(first: ImageSet, second: ImageSet) -> np.ndarray:
    """Returns a boolean matrix: image i of `first` equals image j of `second`."""
    return (first.images[:, None] == second.images[None]).all(axis=(2, 3, 4))


def test_numbers_of_a_split(splits):
    for seen, part in zip(inspect(splits).splits, in_order(splits), strict=True):
        assert seen.num_images == len(part.images)
        assert list(seen.class_counts) == [(part.labels == label).sum() for label in range(3)]
        assert (seen.low, seen.high) == (part.images.min(), part.images.max())
        assert seen.mean == pytest.approx(part.images.astype(float).mean())
        assert seen.num_duplicates == (np.tril(same(part, part), -1).any(axis=1)).sum()
        assert seen.num_groups is None


def test_images_shared_by_splits(splits):
    for seen in inspect(splits).overlaps:
        first, second = getattr(splits, seen.first), getattr(splits, seen.second)
        assert seen.num_images == same(first, second).any(axis=0).sum()
        assert seen.num_groups is None
    assert [(o.first, o.second) for o in inspect(splits).overlaps] == [
        ("train", "val"),
        ("train", "test"),
        ("val", "test"),
    ]


def test_contradicting_labels(splits):
    parts = in_order(splits)
    images = np.concatenate([part.images.reshape(len(part), -1) for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    distinct = np.unique(images, axis=0)
    expected = sum(len(set(labels[(images == image).all(axis=1)])) > 1 for image in distinct)
    assert inspect(splits).num_contradictions == expected


def test_groups():
    train = make_set(0, 60, groups=np.arange(60) // 3)
    val = make_set(1, 30, groups=np.arange(30) + 15)
    test = make_set(2, 40, groups=np.arange(40) + 100)
    seen = inspect(Splits(train, val, test))
    assert [split.num_groups for split in seen.splits] == [20, 30, 40]
    assert [overlap.num_groups for overlap in seen.overlaps] == [5, 0, 0]
    assert "train and val share 5 groups: results on val will look too good." in seen.warnings


def test_warnings_name_what_is_wrong():
    train = make_set(0, 60, levels=256)
    keep = np.flatnonzero((train.labels != 2) | (np.cumsum(train.labels == 2) <= 3))
    train = train.subset(keep)
    test = make_set(2, 40, levels=256)
    test = test.subset(np.flatnonzero(test.labels != 1))
    test.images[0] = train.images[0]
    labels = np.r_[(train.labels[0] + 2) % 4, test.labels[1:]]
    val = replace(make_set(1, 30), images=np.zeros((30, 1, 2, 3), np.uint8))
    seen = inspect(Splits(train, val, replace(test, labels=labels)))
    assert seen.rare_classes == ("c",)
    for sentence in (
        "Class 'c' has only 3 training images.",
        "Class 'b' has no test image: nothing can be said about it.",
        "val repeats 29 images of its own.",
        "All pixels of val have the same value.",
        "train and test share 1 image: results on test will look too good.",
    ):
        assert sentence in seen.warnings


def test_a_clean_set_has_no_warnings():
    assert inspect(load_splits(Digits())).warnings == ()


def test_known_flaws_of_a_real_set_are_found():
    if not (REAL / "pneumoniamnist.npz").exists():
        pytest.skip("shared/data is not there")
    splits = load_splits(Archive(path=REAL / "pneumoniamnist.npz"))
    seen = inspect(splits)
    train, val = ([image.tobytes() for image in part.images] for part in (splits.train, splits.val))
    assert seen.splits[0].num_duplicates == len(train) - len(set(train)) == 18
    assert seen.overlaps[0].num_images == sum(image in set(train) for image in val) == 8


def rendered(splits: Splits) -> str:
    stream = io.StringIO()
    Console(file=stream, width=100).print(render(inspect(splits)))
    return stream.getvalue()


def test_rendering_shows_counts_and_warnings_and_prints_nothing_itself(splits, capsys):
    named = [replace(part, class_names=("[red]a", "b", "c")) for part in in_order(splits)]
    text = rendered(Splits(*named))
    for split in inspect(splits).splits:
        assert split.name in text
        assert all(str(count) in text for count in split.class_counts)
    assert "[red]a" in text
    assert "2x3 pixels, grey" in text
    assert "share" in text
    assert capsys.readouterr().out == ""
