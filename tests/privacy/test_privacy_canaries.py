"""Canaries: where they stand, and that each is what its name says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.privacy.canaries import KINDS, plant


def same(image: np.ndarray, images: np.ndarray) -> np.ndarray:
    return (images == image).all(axis=(1, 2, 3))


def test_canaries_stand_behind_the_members_and_are_what_they_are_called(
    make_set: Callable[..., ImageSet],
) -> None:
    members = make_set(40, num_classes=3)
    planted = plant(members, 5, np.random.default_rng(0))
    assert np.array_equal(planted.pool.images[:40], members.images)
    assert np.array_equal(planted.pool.labels[:40], members.labels)
    assert np.bincount(planted.kinds).tolist() == [40, *[5] * len(KINDS)]
    by_kind = {
        name: planted.pool.subset(np.flatnonzero(planted.kinds == kind))
        for kind, name in enumerate(KINDS, start=1)
    }
    wrong = by_kind["mislabelled"]
    for image, label in zip(wrong.images, wrong.labels, strict=True):
        assert label not in members.labels[same(image, members.images)]
    moved = by_kind["near_duplicate"]
    for image, label in zip(moved.images, moved.labels, strict=True):
        back = np.concatenate([image[..., 1:], image[..., :1]], axis=-1)
        assert label in members.labels[same(back, members.images)]
    for image in by_kind["atypical"].images:
        assert not same(image, members.images).any()
        pairs = members.images[:, None].astype(int) + members.images[None]
        assert ((pairs // 2) == image).all(axis=(2, 3, 4)).any(), "the mean of two members"
