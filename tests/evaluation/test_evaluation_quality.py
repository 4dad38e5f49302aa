"""Quality measures against torchmetrics, closed forms, slow loops and what they must be for sets
that are equal, of one law, or far apart.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from knowledge_recycling.evaluation.quality import (
    MAX_IMAGES,
    coverage,
    density,
    frechet_distance,
    kernel_distance,
    measure_quality,
    nearest_distances,
    precision,
    recall,
)


def clouds(num_a=60, num_b=50, features=4, offset=0.7):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(features, features))
    return rng.normal(size=(num_a, features)), rng.normal(size=(num_b, features)) @ mix + offset


class AsTheyAre(torch.nn.Module):
    """Stands in for Inception: features are given."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def torchmetrics_value(metric, a, b):
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(a), real=True)
    metric.update(torch.from_numpy(b), real=False)
    return metric.compute()


def test_frechet_distance_is_torchmetrics():
    a, b = clouds()
    expected = torchmetrics_value(FrechetInceptionDistance(AsTheyAre(4)), a, b)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("sizes", [(60, 50, 4), (40, 30, 10)])
def test_frechet_distance_is_its_formula(sizes):
    a, b = clouds(*sizes)
    covariances = np.cov(a.T), np.cov(b.T)
    root = sqrtm(covariances[0] @ covariances[1]).real
    means = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected = means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    scales, shift = np.array([1.0, 2.0, 0.5]), np.array([1.0, 0.0, -2.0])
    a = rng.normal(size=(200_000, 3))
    b = rng.normal(size=(200_000, 3)) * scales + shift
    expected = np.sum(shift**2) + np.sum((scales - 1) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=0.01)


def test_frechet_distance_with_fewer_images_than_features():
    a, b = clouds(10, 8, 30)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, b) > 0


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_kernel_distance_is_torchmetrics():
    a, b = clouds(50, 50)
    metric = KernelInceptionDistance(AsTheyAre(4), subsets=1, subset_size=50)
    assert kernel_distance(a, b) == pytest.approx(float(torchmetrics_value(metric, a, b)[0]))


def test_kernel_distance_is_its_sums():
    a, b = clouds(9, 7, 3)

    def mean_kernel(xs, ys, *, skip_same):
        pairs = [(i, j) for i, j in product(range(len(xs)), range(len(ys)))]
        kept = [(i, j) for i, j in pairs if not (skip_same and i == j)]
        return np.mean([(xs[i] @ ys[j] / 3 + 1) ** 3 for i, j in kept])

    expected = (
        mean_kernel(a, a, skip_same=True)
        + mean_kernel(b, b, skip_same=True)
        - 2 * mean_kernel(a, b, skip_same=False)
    )
    assert kernel_distance(a, b) == pytest.approx(expected)


def test_kernel_distance_is_zero_on_average_for_one_law():
    rng = np.random.default_rng(0)
    values = [
        kernel_distance(rng.normal(size=(100, 4)), rng.normal(size=(100, 4))) for _ in range(60)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    assert min(values) < 0 < max(values)


def slow_neighbourhoods(centres, points, neighbours):
    """Returns for each centre the points within its k-th nearest distance, by loops."""
    found = []
    for i, centre in enumerate(centres):
        others = sorted(np.linalg.norm(centre - c) for j, c in enumerate(centres) if j != i)
        radius = others[neighbours - 1]
        near = (j for j, point in enumerate(points) if np.linalg.norm(centre - point) <= radius)
        found.append(set(near))
    return found


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_neighbourhood_measures_are_those_of_loops(neighbours):
    real, synthetic = clouds()
    around_real = slow_neighbourhoods(real, synthetic, neighbours)
    around_synthetic = slow_neighbourhoods(synthetic, real, neighbours)
    arguments = real, synthetic, neighbours
    assert precision(*arguments) == pytest.approx(len(set.union(*around_real)) / 50)
    assert recall(*arguments) == pytest.approx(len(set.union(*around_synthetic)) / 60)
    assert density(*arguments) == pytest.approx(sum(map(len, around_real)) / (neighbours * 50))
    assert coverage(*arguments) == pytest.approx(np.mean([bool(each) for each in around_real]))


def test_a_set_beside_itself_is_perfect():
    real, _ = clouds()
    quality = measure_quality(real, real)
    assert quality.frechet_distance == pytest.approx(0, abs=1e-9)
    assert (quality.precision, quality.recall, quality.coverage) == (1.0, 1.0, 1.0)
    assert quality.density >= 1


def test_density_and_coverage_of_one_law_are_as_published():
    """Naeem 2020, section 3: density is 1 on average, coverage nearly 1 - 2 ** -k."""
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(1500, 8)), rng.normal(size=(1500, 8))
    assert density(real, synthetic) == pytest.approx(1, abs=0.05)
    assert coverage(real, synthetic) == pytest.approx(1 - 2**-5, abs=0.02)


def test_missing_and_unreal_kinds_are_told_apart():
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(2, 200, 3)) + np.array([0.0, 50.0])[:, None, None]
    both, one = kinds.reshape(400, 3), kinds[0]
    half_missing = measure_quality(both, np.concatenate([one, one + 1e-3]))
    assert half_missing.precision > 0.9
    assert half_missing.recall < 0.6
    assert half_missing.coverage < 0.6
    half_unreal = measure_quality(np.concatenate([one, one + 1e-3]), both)
    assert half_unreal.precision < 0.6
    assert half_unreal.recall > 0.9


def test_both_sides_are_thinned_to_the_same_number():
    real, synthetic = clouds(300, 120)
    quality = measure_quality(real, synthetic)
    chosen = real[np.linspace(0, 299, 120).astype(int)]
    assert quality == measure_quality(chosen, synthetic)
    assert quality.images == 120
    many = np.random.default_rng(0).normal(size=(MAX_IMAGES + 500, 2))
    assert measure_quality(many, many).images == MAX_IMAGES
    json.dumps(asdict(quality), allow_nan=False)


def test_float32_features_give_the_same_and_are_unchanged():
    real, synthetic = (each.astype(np.float32) for each in clouds())
    before = real.copy(), synthetic.copy()
    quality = asdict(measure_quality(real, synthetic))
    assert quality == asdict(measure_quality(real.astype(np.float64), synthetic.astype(np.float64)))
    np.testing.assert_array_equal(real, before[0])
    np.testing.assert_array_equal(synthetic, before[1])


def test_nearest_distances_are_those_of_a_loop():
    queries, references = clouds(70, 40)
    expected = [min(np.linalg.norm(query - each) for each in references) for query in queries]
    np.testing.assert_allclose(nearest_distances(queries, references), expected)


def test_an_exact_copy_is_at_no_distance_however_far_from_the_origin():
    references = np.random.default_rng(0).normal(size=(50, 20)) + 1e6
    np.testing.assert_array_equal(nearest_distances(references[::-1], references), 0)
