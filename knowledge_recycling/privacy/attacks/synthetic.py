"""What the synthetic set alone gives away: images close to it, or where it is dense.

An alarm, never a proof of privacy. Distances are Euclidean in the space of any features; pairs are
compared in blocks of bounded memory. Shapes: N images, M synthetic, R reference images, D features.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import PositiveInt
from sklearn.neighbors import KernelDensity, NearestNeighbors

from knowledge_recycling.config import PluginConfig
from knowledge_recycling.errors import DataError
from knowledge_recycling.privacy.signals import Floats, Signals

NEEDS = ("features", "synthetic_features", "reference_features")


class Config(PluginConfig):
    """What is compared between the synthetic and the reference images."""

    kind: Literal["synthetic"] = "synthetic"
    method: Literal["distance", "knn_density", "kernel_density"] = "distance"
    """`distance`: to the nearest images (GAN-Leaks, Chen 2020, arXiv 1909.03935). The two densities
    give the ratio of DOMIAS (van Breugel 2023, arXiv 2302.12580, eq. 2): `knn_density` from the
    distance to the k-th neighbour, for any number of features; `kernel_density` for a few."""
    neighbours: PositiveInt = 1
    """k: of the nearest images `distance` takes the mean distance."""


def score(signals: Signals, config: Config) -> Floats:
    """Returns how much closer or denser the synthetic than the reference images are, [N].

    `distance`: reference minus synthetic distance; densities: log of synthetic over reference.
    Features are divided by the standard deviation that each has among the reference images.

    Raises:
        DataError: There are fewer synthetic or reference images than neighbours.
    """
    reference = signals.floats("reference_features")
    scale = reference.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    images, synthetic = (signals.floats(name) / scale for name in NEEDS[:2])
    measure = _METHODS[config.method]
    own = measure(images, synthetic, config.neighbours)
    return own - measure(images, reference / scale, config.neighbours)


def neighbour_distances(queries: Floats, references: Floats, neighbours: int) -> Floats:
    """Returns the distances from queries [N,D] to the k nearest of [M,D], rising, [N,k].

    Raises:
        DataError: There are fewer references than neighbours.

    >>> neighbour_distances(np.array([[0.0]]), np.array([[3.0], [0.0], [9.0]]), 2).tolist()
    [[0.0, 3.0]]
    """
    if len(references) < neighbours:
        raise DataError(
            "there are fewer images than neighbours to look for",
            expected=f"at least {neighbours}",
            got=len(references),
            next_step="set fewer neighbours",
        )
    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(references)
    nearest = search.kneighbors(queries, return_distance=False)  # [N, k]
    # Found by products of matrices, whose rounding would hide an exact copy: hence measured again.
    columns = [np.linalg.norm(queries - references[each], axis=1) for each in nearest.T]
    return np.sort(np.stack(columns, axis=1), axis=1)


def _closeness(queries: Floats, references: Floats, neighbours: int) -> Floats:
    return np.asarray(-neighbour_distances(queries, references, neighbours).mean(axis=1))


def _knn_log_density(queries: Floats, references: Floats, neighbours: int) -> Floats:
    """Returns log(k / (M r^D)) of the distance r to the k-th neighbour, up to a constant."""
    radius = neighbour_distances(queries, references, neighbours)[:, -1]
    radius = np.maximum(radius, np.finfo(np.float32).tiny)  # of an exact copy: finite
    volume = references.shape[1] * np.log(radius)
    return np.asarray(np.log(neighbours / len(references)) - volume)


def _kernel_log_density(queries: Floats, references: Floats, neighbours: int) -> Floats:
    del neighbours
    density = KernelDensity(kernel="gaussian", bandwidth="scott").fit(references)
    return np.asarray(density.score_samples(queries))


_METHODS = {
    "distance": _closeness,
    "knn_density": _knn_log_density,
    "kernel_density": _kernel_log_density,
}
