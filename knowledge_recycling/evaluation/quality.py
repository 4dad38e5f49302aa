"""How close synthetic images are to real ones, in the space of some features.

Any features do, such as those that a classifier's last layer reads; figures compare only where both
sets are seen through the same features and have as many images. Distances are Euclidean. Memory
grows with N times M unless said otherwise: `measure_quality` bounds both.

Shapes: N real and M synthetic images, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from sklearn.metrics import pairwise_distances_argmin

from knowledge_recycling.data.images import evenly_spaced

Floats = npt.NDArray[np.float64]

MAX_IMAGES = 2000


@dataclass(frozen=True)
class Quality:
    """How close synthetic images are to real ones."""

    images: int
    """Images compared on either side."""
    frechet_distance: float
    """0 for sets of equal mean and covariance; larger for smaller sets."""
    kernel_distance: float
    """0 for sets of one law, on average over sets: may be slightly negative."""
    precision: float
    """Share of the synthetic images that lie among real ones, 0 to 1."""
    recall: float
    """Share of the real images that lie among synthetic ones, 0 to 1."""
    density: float
    """Real neighbourhoods that a synthetic image lies in, as a multiple of the expected; about 1
    for sets of one law."""
    coverage: float
    """Share of the real images with a synthetic image in their neighbourhood, 0 to 1."""


def measure_quality(real: Floats, synthetic: Floats) -> Quality:
    """Returns the quality of synthetic features [M,D] beside real ones [N,D].

    All measures depend on how many images there are, so that both sides are thinned out evenly to
    the smaller one, and to 2000 at most. A class prior other than the real one counts as distance.

    >>> real = np.random.default_rng(0).normal(size=(100, 4))
    >>> quality = measure_quality(real, real + 100)
    >>> quality.images, quality.precision, quality.coverage
    (100, 0.0, 0.0)
    """
    count = num_compared(len(real), len(synthetic))
    real, synthetic = _thinned(real, count), _thinned(synthetic, count)
    return Quality(
        images=count,
        frechet_distance=frechet_distance(real, synthetic),
        kernel_distance=kernel_distance(real, synthetic),
        precision=precision(real, synthetic),
        recall=recall(real, synthetic),
        density=density(real, synthetic),
        coverage=coverage(real, synthetic),
    )


def num_compared(num_real: int, num_synthetic: int) -> int:
    """Returns to how many images `measure_quality` thins out either side."""
    return min(num_real, num_synthetic, MAX_IMAGES)


def frechet_distance(a: Floats, b: Floats) -> float:
    """Returns the Frechet distance of Gaussians fitted to [N,D] and [M,D].

    Heusel 2017 (arXiv 1706.08500, eq. 6), there of Inception features: FID. Memory grows with N, M
    and D squared only.

    >>> a = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(frechet_distance(a, a + [3.0, 4.0, 0.0]), 6)
    25.0
    """
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    # With Sa = A'A and Sb = B'B, sqrt(Sa Sb) has the trace of the singular values of AB'. Neither
    # covariance is formed or inverted, so that fewer images than features do no harm.
    overlap = np.linalg.norm(root_a @ root_b.T, ord="nuc")
    means = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return float(means + np.sum(root_a**2) + np.sum(root_b**2) - 2 * overlap)


def _covariance_root(features: Floats) -> Floats:
    """Returns A of at most D rows with A'A the unbiased covariance."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))


def kernel_distance(a: Floats, b: Floats) -> float:
    """Returns the squared maximum mean discrepancy of [N,D] and [M,D] under a cubic kernel.

    The unbiased estimate of Binkowski 2018 (arXiv 1801.01401), there of Inception features: KID.

    >>> a = np.array([[1.0], [1.0]])
    >>> kernel_distance(a, np.array([[0.0], [0.0]]))  # (1 + 1)^3 + 1 - 2
    7.0
    """
    between = np.mean(_cubic_kernel(a, b))
    return float(_mean_of_pairs(a) + _mean_of_pairs(b) - 2 * between)


def _cubic_kernel(a: Floats, b: Floats) -> Floats:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def _mean_of_pairs(features: Floats) -> float:
    """Returns the mean kernel of two different images of a set."""
    kernel = _cubic_kernel(features, features)
    return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))


def precision(real: Floats, synthetic: Floats, neighbours: int = 3) -> float:
    """Returns the share of synthetic images in a real one's neighbourhood, 0 to 1.

    A neighbourhood is the ball up to the k-th nearest image of the same set (Kynkaanniemi 2019,
    arXiv 1904.06991).

    >>> line = np.arange(10.0)[:, None]
    >>> precision(line, np.array([[4.5], [100.0]]))
    0.5
    """
    return float(_in_neighbourhoods(real, synthetic, neighbours).any(axis=0).mean())


def recall(real: Floats, synthetic: Floats, neighbours: int = 3) -> float:
    """Returns the share of real images in a synthetic one's neighbourhood, 0 to 1.

    Kynkaanniemi 2019 (arXiv 1904.06991).

    >>> line = np.arange(10.0)[:, None]
    >>> recall(line, line[:4])
    0.7
    """
    return precision(synthetic, real, neighbours)


def density(real: Floats, synthetic: Floats, neighbours: int = 5) -> float:
    """Returns how many real neighbourhoods hold a synthetic image, over k; 0 or more.

    Naeem 2020 (arXiv 2002.09797, section 3).

    >>> line = np.arange(10.0)[:, None]
    >>> density(line, np.array([[100.0]]))
    0.0
    """
    return float(_in_neighbourhoods(real, synthetic, neighbours).sum(axis=0).mean() / neighbours)


def coverage(real: Floats, synthetic: Floats, neighbours: int = 5) -> float:
    """Returns the share of real images whose neighbourhood holds a synthetic image, 0 to 1.

    Naeem 2020 (arXiv 2002.09797, section 3).

    >>> line = np.arange(10.0)[:, None]
    >>> coverage(line, line)
    1.0
    """
    return float(_in_neighbourhoods(real, synthetic, neighbours).any(axis=1).mean())


def _in_neighbourhoods(centres: Floats, points: Floats, neighbours: int) -> npt.NDArray[np.bool_]:
    """Returns whether each point lies in each centre's neighbourhood, [N,M]."""
    # The nearest of a set to one of its own images is that image itself, hence position k, not k-1.
    radii = np.partition(cdist(centres, centres), neighbours, axis=1)[:, neighbours]
    return np.asarray(cdist(centres, points) <= radii[:, None])


def nearest_distances(queries: Floats, references: Floats) -> Floats:
    """Returns the distance from each query to its nearest reference; 0 for an exact copy.

    The pairs are compared in chunks: memory grows with M plus N only.

    Args:
        queries: [M,D]
        references: [N,D]

    >>> nearest_distances(np.array([[0.0], [4.0]]), np.array([[1.0], [4.0]])).tolist()
    [1.0, 0.0]
    """
    nearest = pairwise_distances_argmin(queries, references)
    # Found by products of matrices, whose rounding would hide an exact copy: hence measured again.
    return np.asarray(np.linalg.norm(queries - references[nearest], axis=1))


def _thinned(features: Floats, count: int) -> Floats:
    return np.asarray(features[evenly_spaced(len(features), count)], dtype=np.float64)
