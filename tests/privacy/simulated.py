"""Signals of models that are more sure of their members, by an amount of one's choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from knowledge_recycling.privacy.signals import Signals


@dataclass(frozen=True)
class Case:
    signals: Signals
    members: Any
    """[N], of the target."""
    judged: Any
    """[N], all that are not of the population."""


def simulate(
    gain: float = 3.0,
    *,
    shadows: int = 16,
    queries: int = 3,
    images: int = 240,
    classes: int = 4,
    population: int = 60,
    seed: int = 0,
    memberships: Any = None,
    dtype: Any = np.float64,
) -> Case:
    """Returns a case in which a member's logits lie about `gain` nearer to its label.

    `memberships` [shadows + 1, images] are random if not given; the first row is the target's.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    judged = np.arange(images) >= population
    random = (rng.random((shadows + 1, images)) < 0.5) & judged
    random[0, judged] = np.arange(images - population) % 2 == 0  # the target
    for row, first in ((1, True), (2, True), (3, False), (4, False)):  # 2 IN and 2 OUT at least
        random[row] = first & judged
    memberships = random if memberships is None else memberships
    logits = rng.normal(size=(shadows + 1, queries, images, classes))
    difficulty = rng.normal(size=images)
    own = difficulty + gain * memberships[:, None] + 0.5 * rng.normal(size=(shadows + 1, 1, images))
    logits += own[..., None] * np.eye(classes)[labels]
    target = memberships[0]
    features = rng.normal(size=(images, 3))
    near = features[target] + 0.3 / (gain + 0.1) * rng.normal(size=(int(target.sum()), 3))
    fields = {
        "logits": logits[0],
        "shadow_logits": logits[1:],
        "losses": difficulty - gain * target,
        "shadow_losses": difficulty - gain * memberships[1:] + rng.normal(size=(shadows, images)),
        "features": features,
        "synthetic_features": near,
        "reference_features": rng.normal(size=(len(near), 3)),
    }
    signals = Signals(
        labels=labels,
        shadow_members=memberships[1:],
        population=~judged,
        **{name: values.astype(dtype) for name, values in fields.items()},
    )
    return Case(signals, target, judged)
