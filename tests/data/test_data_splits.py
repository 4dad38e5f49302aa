"""Made splits against counting by hand, scikit-learn's stratified split and an exhaustive search.

Every image carries its own number in its pixels, so that no image can be lost or doubled unseen.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.data.sources import SourceConfig
from knowledge_recycling.data.splits import complete
from knowledge_recycling.errors import DataError


def make_set(labels, groups=None) -> ImageSet:
    labels = np.asarray(labels, np.int64)
    numbers = np.arange(len(labels))
    images = np.zeros((len(labels), 1, 2, 2), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers // 256, numbers % 256
    names = tuple(f"class {label}" for label in range(labels.max() + 1))
    return ImageSet(images, labels, names, None if groups is None else np.asarray(groups))


def numbers_of(part: ImageSet) -> list[int]:
    return (part.images[:, 0, 0, 0].astype(int) * 256 + part.images[:, 0, 0, 1]).tolist()


def config(**values) -> SourceConfig:
    return SourceConfig(kind="test", **values)


LABELS = np.random.default_rng(0).choice(3, 1000, p=[0.7, 0.25, 0.05])


def test_every_image_is_in_exactly_one_split_with_its_label():
    whole = make_set(LABELS)
    splits = complete({"train": whole}, config())
    parts = (splits.train, splits.val, splits.test)
    assert sorted(chain(*map(numbers_of, parts))) == list(range(1000))
    for part in parts:
        np.testing.assert_array_equal(part.labels, LABELS[numbers_of(part)])
        assert numbers_of(part) == sorted(numbers_of(part))


def test_shares_are_those_of_scikit_learn():
    splits = complete({"train": make_set(LABELS)}, config(test_fraction=0.2, val_fraction=0.15))
    rest, test = train_test_split(LABELS, test_size=200, stratify=LABELS, random_state=0)
    train, val = train_test_split(rest, test_size=150, stratify=rest, random_state=0)
    for part, expected in ((splits.train, train), (splits.val, val), (splits.test, test)):
        assert np.abs(part.class_counts() - np.bincount(expected)).max() <= 2


def test_same_seed_same_splits_other_seed_other_splits():
    whole = make_set(LABELS)
    first, second = (complete({"train": whole}, config()) for _ in range(2))
    other = complete({"train": whole}, config(split_seed=1))
    assert numbers_of(first.val) == numbers_of(second.val)
    assert numbers_of(first.test) == numbers_of(second.test)
    assert numbers_of(first.test) != numbers_of(other.test)


def test_test_split_does_not_depend_on_the_share_of_val():
    whole = make_set(LABELS)
    small, large = (complete({"train": whole}, config(val_fraction=v)) for v in (0.1, 0.3))
    assert numbers_of(small.test) == numbers_of(large.test)


def test_found_splits_are_not_touched():
    train, test = make_set(LABELS), make_set(LABELS[:50])
    splits = complete({"train": train, "test": test}, config(val_fraction=0.1))
    assert splits.test is test
    assert len(splits.val) == pytest.approx(100, abs=2)
    all_found = complete({"train": train, "val": test, "test": test}, config())
    assert all_found.train is train


@pytest.mark.parametrize("count", [3, 4, 7])
def test_rare_class_is_in_every_split(count):
    labels = [0] * 500 + [1] * count
    splits = complete({"train": make_set(labels)}, config(val_fraction=0.02, test_fraction=0.02))
    for part in (splits.train, splits.val, splits.test):
        assert part.class_counts()[1] >= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 0.49), st.floats(0.01, 0.49), st.integers(2, 4))
def test_groups_are_never_cut(seed, val_fraction, test_fraction, num_classes):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 30, 120)
    whole = make_set(
        np.r_[np.arange(num_classes), rng.integers(0, num_classes, 116)],
        np.r_[np.zeros(num_classes, int), groups[:116]],
    )
    fractions = config(val_fraction=val_fraction, test_fraction=test_fraction, split_seed=seed)
    splits = complete({"train": whole}, fractions)
    parts = (splits.train, splits.val, splits.test)
    for first, second in combinations(parts, 2):
        assert not set(first.groups) & set(second.groups)
    assert sorted(chain(*map(numbers_of, parts))) == list(range(len(whole)))
    assert all(part.class_counts().min() >= 1 for part in parts)


def test_group_split_is_stratified():
    rng = np.random.default_rng(1)
    class_of_group = rng.choice(2, 200, p=[0.8, 0.2])
    groups = rng.integers(0, 200, 4000)
    whole = make_set(class_of_group[groups], groups)
    splits = complete({"train": whole}, config(test_fraction=0.2))
    shares = splits.test.class_counts() / whole.class_counts()
    np.testing.assert_allclose(shares, 0.2, atol=0.01)


def test_group_split_of_a_small_set_is_the_best_there_is():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(7), [3, 9, 5, 7, 2, 8, 6])
    labels = rng.integers(0, 2, len(groups))
    whole = make_set(labels, groups)
    found = {"train": whole, "val": whole}
    test = complete(found, config(test_fraction=0.3)).test

    def misfit(chosen) -> float:
        share = np.bincount(labels[np.isin(groups, chosen)], minlength=2) / np.bincount(labels)
        return float(((share - 0.3) ** 2).sum())

    best = min(misfit(chosen) for chosen in combinations(range(7), 2))
    assert misfit(np.unique(test.groups)) == pytest.approx(best)


GOOD = make_set([0, 1] * 20)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"val": GOOD}, "no train split"),
        ({"train": make_set([0] * 20)}, "one class only"),
        ({"train": make_set([0, 2] * 20)}, "class 'class 1' is absent from train"),
        ({"train": make_set([0] * 20 + [1] * 2)}, "class 'class 1' has too few images"),
        ({"train": make_set([0, 1] * 9, [0, 0] * 3 + [1, 1] * 6)}, "too few groups"),
        ({"train": GOOD, "val": replace(GOOD, images=np.zeros((40, 3, 2, 2), "u1"))}, "shape"),
        ({"train": GOOD, "val": replace(GOOD, class_names=("b", "a"))}, "differ in their classes"),
        ({"train": GOOD, "val": GOOD.subset(np.arange(0))}, "the split is empty"),
        ({"train": replace(GOOD, labels=np.zeros(3, int))}, "not every image has a label"),
        ({"train": replace(GOOD, labels=np.arange(40))}, "a label has no class name"),
        ({"train": replace(GOOD, images=np.zeros((40, 1, 2, 2)))}, "wrong form"),
        ({"train": replace(GOOD, images=np.zeros((40, 2, 2, 2), "u1"))}, "wrong form"),
    ],
)
def test_unusable_sets_are_refused_with_all_details(found, words):
    with pytest.raises(DataError, match=words) as caught:
        complete(found, config())
    error = caught.value
    assert None not in (error.where, error.expected, error.got, error.next_step)


def test_groups_that_cannot_serve_every_class_are_refused():
    labels = np.r_[np.zeros(30, int), 1, 1, 2, 2]  # classes 1 and 2 in the same two groups
    groups = np.r_[np.arange(30), 30, 31, 30, 31]
    found = {"train": make_set(labels, groups), "val": make_set(labels)}
    splits = complete(found, config())
    assert splits.test.class_counts().min() >= 1
    one_sided = {"train": make_set([0, 0, 1, 1], [0, 1, 0, 1]), "val": make_set([0, 1])}
    assert len(complete(one_sided, config()).test) == 2
    crossed = {
        "train": make_set([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0]),
        "val": make_set([0, 1, 2]),
    }
    with pytest.raises(DataError, match="no draw of whole groups"):
        complete(crossed, config())


def test_a_given_split_of_one_class_is_refused():
    train = make_set([0, 1] * 20)
    one_class = replace(train.subset(np.arange(0, 40, 2)), class_names=train.class_names)
    with pytest.raises(DataError, match="images of one class only") as caught:
        complete({"train": train, "val": one_class}, config())
    assert "split 'val'" in str(caught.value)
