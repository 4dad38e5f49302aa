"""What the benchmarks compute from what they measure."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import nn

from benchmarks.growth import Case, exponent, resized, subset
from benchmarks.limit import SAMPLING, flops_of, overhead, pay_back
from benchmarks.mapped import NOISE, write_large
from benchmarks.teachers import compared
from knowledge_recycling.data.sources import npz
from knowledge_recycling.timing import GKD, LABELLING, TEACHING


def test_the_exponent_of_a_power_law_is_its_power() -> None:
    sizes = [1000.0, 2000.0, 8000.0]
    assert exponent(sizes, [3 * size**0.25 for size in sizes]) == pytest.approx(0.25)


def test_a_subset_of_a_sorted_set_has_images_of_each_class_asked_for(tmp_path: Path) -> None:
    numbers = np.arange(60, dtype=np.uint8)  # an image's pixels tell which it is
    whole = {}
    for split in ("train", "val", "test"):
        whole[f"{split}_images"] = np.tile(numbers[:, None, None, None], (1, 8, 8, 3))
        whole[f"{split}_labels"] = numbers[:, None] // 15
    np.savez(tmp_path / "whole.npz", **whole)
    subset(tmp_path / "whole.npz", Case(images=20, side=8, classes=2), tmp_path / "part.npz")
    with np.load(tmp_path / "part.npz") as part:
        taken, labels = part["train_images"][:, 0, 0, 0], part["train_labels"].ravel()
        assert len(set(taken)) == 20
        np.testing.assert_array_equal(labels, taken // 15)
        assert min(np.bincount(labels)) >= 5
        assert sorted(part["test_labels"].ravel()) == [0] * 15 + [1] * 15


def test_resized_images_keep_colour_and_layout() -> None:
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    images[1] = (10, 100, 200)
    larger = resized(images, 16)
    assert larger.shape == (2, 16, 16, 3)
    assert larger.dtype == np.uint8
    assert (larger[1] == (10, 100, 200)).all()
    assert resized(images, 8) is images


def test_a_large_set_is_mapped_and_repeats_no_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = {}
    for split in ("train", "val", "test"):
        whole[f"{split}_images"] = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
        whole[f"{split}_labels"] = np.arange(6)[:, None] % 2
    np.savez_compressed(tmp_path / "small.npz", **whole)
    count = write_large(tmp_path / "small.npz", 5000 * 8 * 8 * 3, tmp_path / "large.npz")
    assert count == 5000
    found = npz.load(npz.Config(path=tmp_path / "large.npz"))
    images = np.moveaxis(found["train"].images, 1, 3)
    assert len(np.unique(images.reshape(count, -1), axis=0)) == count
    far = np.abs(images.astype(int) - whole["train_images"][np.arange(count) % 6])
    assert 0 < far.max() <= NOISE
    np.testing.assert_array_equal(found["train"].labels, np.arange(count) % 6 % 2)
    np.testing.assert_array_equal(found["val"].images, np.moveaxis(whole["val_images"], 3, 1))


def test_operations_are_counted_as_on_paper() -> None:
    kernel = nn.Conv2d(3, 5, 3, padding=1, bias=False).requires_grad_(requires_grad=False)
    images = torch.zeros(4, 3, 10, 10)
    assert flops_of(lambda: kernel(images)) == 2 * 4 * 10 * 10 * 3 * 5 * 3 * 3


def test_overhead_and_pay_back() -> None:
    seconds = {TEACHING: 1.0, SAMPLING: 3.0, GKD: 1.5, LABELLING: 0.3}
    flops = {TEACHING: 3.0, SAMPLING: 5.0, GKD: 4.0, LABELLING: 1.0}
    ratios = overhead(seconds, flops)
    assert ratios["GKD over plain training"] == 4.5
    assert ratios["allowed"] == pytest.approx(1.15 * 3)
    compiled = {f"{TEACHING}, compiled": 0.5, f"{SAMPLING}, compiled": 4.0}
    paid = pay_back(seconds | compiled, dict.fromkeys(compiled, 20.0))
    assert paid[f"{TEACHING}, compiled"] == {"seconds": 20.0, "gain": 1.0, "images": 40.0}
    assert paid[f"{SAMPLING}, compiled"]["images"] == math.inf


def test_gains_of_teachers_are_paired_by_fold() -> None:
    base = [{"accuracy": 80.0 + i, "AUROC": 90.0, "loss": 0.5 - 0.1 * i} for i in range(3)]
    gains = [1.0, 2.0, 3.0]
    better = [
        each | {"accuracy": each["accuracy"] + gain} for each, gain in zip(base, gains, strict=True)
    ]
    *_, default, variant = compared({"defaults": base, "better": better})
    half = t.ppf(0.975, 2) * np.std(gains, ddof=1) / math.sqrt(3)
    assert default == "| defaults | 81.00 | 90.00 | 0.400 |  |  |  |"
    assert f"| 83.00 | 90.00 | 0.400 | +2.00 +- {half:.2f} | +0.00 +- 0.00 |" in variant
