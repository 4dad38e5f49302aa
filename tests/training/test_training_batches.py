"""Batches as a function of the step: permutations, shares of classes, any order of asking."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.training.batches import Shuffled, class_weights, steps_per_epoch


def numbered(size: int, labels: np.ndarray | None = None, num_classes: int = 2) -> ImageSet:
    """Makes images whose every pixel is their number."""
    images = np.arange(size, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    labels = np.arange(size) % num_classes if labels is None else labels
    return ImageSet(images, labels.astype(np.int64), tuple("abcdefgh"[:num_classes]))


def rows(batch: tuple[torch.Tensor, torch.Tensor]) -> list[int]:
    return [round((float(value) + 1) * 127.5) for value in batch[0][:, 0, 0, 0]]


@pytest.mark.parametrize(("size", "batch_size"), [(24, 8), (25, 8), (7, 7), (31, 1)])
def test_each_epoch_shows_each_image_at_most_once_in_its_own_order(
    size: int, batch_size: int
) -> None:
    batches = Shuffled(numbered(size), batch_size, seed=0, name="t")
    steps = steps_per_epoch(size, batch_size)
    epochs = [
        [row for step in range(steps) for row in rows(batches(epoch * steps + step))]
        for epoch in range(3)
    ]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == steps * batch_size
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    batches = Shuffled(numbered(5), 8, seed=0, name="t")
    assert sorted(rows(batches(0))) == sorted(rows(batches(1))) == [0, 1, 2, 3, 4]


def test_labels_stay_with_their_images_and_the_set_is_untouched() -> None:
    image_set = numbered(30, np.arange(30) // 10, 3)
    before = image_set.digest()
    images, labels = batch = Shuffled(image_set, 12, seed=0, name="t")(1)
    assert labels.tolist() == [row // 10 for row in rows(batch)]
    assert images.dtype == torch.float32
    images.zero_()
    assert image_set.digest() == before


@pytest.mark.parametrize("balance", ["none", "sampling"])
def test_a_batch_is_the_same_whatever_was_asked_before(balance: str) -> None:
    def make(name: str = "t", seed: int = 0) -> Shuffled:
        return Shuffled(numbered(20), 4, seed=seed, name=name, balance=balance)  # type: ignore[arg-type]

    batches = make()
    forward = [rows(batches(step)) for step in range(12)]
    assert [rows(batches(step)) for step in reversed(range(12))] == forward[::-1]
    assert rows(make()(7)) == forward[7]
    for other in (make(name="u"), make(seed=1)):
        assert [rows(other(step)) for step in range(12)] != forward


def test_balanced_sampling_draws_classes_equally_and_images_of_a_class_equally() -> None:
    labels = np.array([0] * 160 + [1] * 32 + [2] * 8)
    batches = Shuffled(numbered(200, labels, 3), 40, seed=0, name="t", balance="sampling")
    drawn = np.array([row for step in range(1000) for row in rows(batches(step))])
    shares = np.bincount(labels[drawn], minlength=3) / len(drawn)
    np.testing.assert_allclose(shares, 1 / 3, atol=5 * np.sqrt(2 / 9 / len(drawn)))
    for k in range(3):
        counts = np.bincount(drawn, minlength=200)[labels == k]
        expected = len(drawn) / 3 / len(counts)
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("counts", [(5, 5), (30, 10, 2), (1, 99)])
def test_class_weights_are_those_of_scikit_learn_with_mean_one(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    weights = class_weights(numbered(len(labels), labels, len(counts)))
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    np.testing.assert_allclose(weights, expected)
    assert weights[labels].mean() == pytest.approx(1)


def test_a_memory_mapped_set_gives_the_same_batches(
    tmp_path_factory: pytest.TempPathFactory, make_set: Callable[..., ImageSet]
) -> None:
    image_set = make_set(24)
    path = tmp_path_factory.mktemp("set") / "images.npy"
    np.save(path, image_set.images)
    mapped = ImageSet(np.load(path, mmap_mode="r"), image_set.labels, image_set.class_names)
    for step in range(3):
        pair = [Shuffled(each, 8, seed=0, name="t")(step)[0] for each in (image_set, mapped)]
        assert torch.equal(*pair)
