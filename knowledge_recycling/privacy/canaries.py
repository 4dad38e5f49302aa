"""Canaries: images planted in the pool that a training which remembers anything will remember.

Averages hide the worst case (arXiv 2404.17399), so attacks on them are reported apart.
Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from knowledge_recycling.data.images import ImageSet

KINDS = ("mislabelled", "atypical", "near_duplicate")
"""A real image under a wrong label, the mean of two images of different classes, and an image next
to itself moved by a pixel."""


@dataclass(frozen=True)
class Planted:
    """A pool with canaries at its end."""

    pool: ImageSet
    kinds: npt.NDArray[np.int64]
    """[N], 0: an image of the set; from 1: a canary of `KINDS`."""


def plant(members: ImageSet, per_kind: int, random: np.random.Generator) -> Planted:
    """Returns the images with `per_kind` canaries of each kind behind them."""
    rows = random.choice(len(members), (len(KINDS) + 1, per_kind))
    wrong = _other_labels(members, rows[0], random)
    partners = np.array([_of_class(members, label, random) for label in wrong], dtype=np.int64)
    blended = members.images[rows[1]].astype(np.uint16) + members.images[partners]
    images = [
        members.images[rows[0]],
        (blended // 2).astype(np.uint8),
        np.roll(members.images[rows[2]], 1, axis=-1),
    ]
    labels = [wrong, members.labels[rows[1]], members.labels[rows[2]]]
    pool = replace(
        members,
        images=np.concatenate([members.images, *images]),
        labels=np.concatenate([members.labels, *labels]),
        groups=None,
    )
    kinds = np.repeat(np.arange(len(KINDS) + 1), [len(members), *[per_kind] * len(KINDS)])
    return Planted(pool, kinds)


def _other_labels(
    members: ImageSet, rows: npt.NDArray[np.int64], random: np.random.Generator
) -> npt.NDArray[np.int64]:
    steps = random.integers(1, members.num_classes, len(rows))
    return (members.labels[rows] + steps) % members.num_classes


def _of_class(members: ImageSet, label: int, random: np.random.Generator) -> int:
    return int(random.choice(np.flatnonzero(members.labels == label)))
