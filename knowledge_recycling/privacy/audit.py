"""The audit: which attacks are run on what the shadows left, and what they tell together.

Every shadow is once the target of the others (leave-one-out), so S shadows give S targets.
Shapes: S shadows, N images of the pool, P of the population, Q queries, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt, field_validator
from torch import Tensor, nn

from knowledge_recycling.config import DERIVED, Config, Facts
from knowledge_recycling.data.images import ImageSet, evenly_spaced, to_unit
from knowledge_recycling.models.build import initial_weights
from knowledge_recycling.privacy.attacks import label_only, lira, rmia, threshold, trained
from knowledge_recycling.privacy.canaries import KINDS
from knowledge_recycling.privacy.epsilon import guess, several_runs_epsilon
from knowledge_recycling.privacy.many import (
    ManyTraining,
    Pool,
    half_memberships,
    logits_of_many,
    train_many,
)
from knowledge_recycling.privacy.metrics import (
    Aggregate,
    Trials,
    aggregate,
    attack_each,
    left_out_targets,
)
from knowledge_recycling.privacy.signals import (
    AnyFloats,
    Bools,
    Floats,
    Labels,
    Signals,
    of_label,
    scaled_logits,
)
from knowledge_recycling.privacy.yardsticks import YardsticksConfig
from knowledge_recycling.randomness import numpy_rng

PRIMARY = "lira"
"""The attack declared beforehand; the maximum over all is shown as what it is."""

IMAGES = "images"
"""The group of images that are no canaries."""

MIN_SHADOWS = 8
"""Fewer leave no image enough shadows on either side."""

MAX_SANITY = 2000
"""Images that the classifiers of the sanity row are asked to learn halves of."""

MIN_ROWS = 4
"""Images of a group or class, below which nothing is said of it."""

Attack = Callable[[Signals], Floats]

ATTACKS: dict[str, Attack] = {
    "lira": lambda seen: lira.score(seen, lira.Config()),
    "lira_offline": lambda seen: lira.score(seen, lira.Config(mode="offline")),
    "rmia": lambda seen: rmia.score(seen, rmia.Config()),
    "rmia_offline": lambda seen: rmia.score(seen, rmia.Config(mode="offline")),
    "trained": lambda seen: trained.score(seen, trained.Config()),
    "loss": lambda seen: threshold.score(seen, threshold.Config(signal="loss")),
    "loss_per_class": lambda seen: threshold.score(
        seen, threshold.Config(signal="loss", per_class=True)
    ),
    "confidence": lambda seen: threshold.score(seen, threshold.Config(signal="confidence")),
    "entropy": lambda seen: threshold.score(seen, threshold.Config(signal="entropy")),
    "modified_entropy": lambda seen: threshold.score(
        seen, threshold.Config(signal="modified_entropy")
    ),
    "label_only": lambda seen: label_only.score(seen, label_only.Config()),
}


class AuditConfig(Config):
    """The audit by shadows: re-runs of the pipeline on random halves of the members."""

    shadows: NonNegativeInt = 0
    """Re-runs, at least 8; 0: no audit. 16 tell averages, 64 and more low error rates."""
    mode: Literal["pipeline", "classifier"] = "pipeline"
    """`pipeline` re-runs teacher, generator and student; `classifier` the teacher alone: cheaper
    and weaker, for it says nothing of the student. Yardsticks come on top in either."""
    selection: Literal["fixed", "repeated"] = "fixed"
    """`fixed` gives every shadow the last candidate and the knobs that this run chose; `repeated`
    lets each choose its own."""
    canaries: NonNegativeInt = DERIVED
    """Canaries of each kind planted in the pool; unset: one in 20 images, at most 100."""
    queries: PositiveInt = 4
    """Ways each image is shown to a target: as it is, and augmented."""
    overlap: Literal["refuse", "leave_out"] = "refuse"
    """What is done about validation images that are identical to a training image: they are no
    holdout. `leave_out` goes on without them."""
    yardsticks: YardsticksConfig = YardsticksConfig()

    @field_validator("shadows")
    @classmethod
    def _enough(cls, shadows: int) -> int:
        if 0 < shadows < MIN_SHADOWS:
            raise ValueError(f"an audit needs at least {MIN_SHADOWS} shadows, or 0 for none")
        return shadows

    def derived(self, facts: Facts) -> dict[str, Any]:
        """Derives the number of canaries."""
        return {"canaries": min(100, facts.num_train // 20)}


@dataclass(frozen=True)
class Shadows:
    """What the shadows of one kind of target say of the pool and of the population behind it."""

    logits: AnyFloats
    """[S,Q,N+P,K]"""
    members: Bools
    """[S,N+P]"""
    labels: Labels
    """[N+P]"""
    kinds: Labels
    """[N+P], 0: an image of the set; from 1: canaries; -1: the population."""


def with_population(
    logits: AnyFloats, members: Bools, labels: Labels, kinds: Labels, population: Labels
) -> Shadows:
    """Returns shadows of a pool with the population behind it, which is IN none of them.

    Args:
        logits: [S,Q,N+P,K]
        members: [S,N], of the pool.
        labels: [N], likewise.
        kinds: [N], likewise.
        population: [P], the labels of the population.
    """
    outside = np.zeros((len(members), len(population)), dtype=np.bool_)
    return Shadows(
        logits,
        np.concatenate([members, outside], axis=1),
        np.concatenate([labels, population]),
        np.concatenate([kinds, np.full(len(population), -1)]),
    )


@dataclass(frozen=True)
class Battery:
    """What all attacks find about one kind of target."""

    found: Mapping[str, Mapping[str, Aggregate]]
    """By group of images (`IMAGES`, then each kind of canary) and attack."""
    primary: list[Trials]
    """[S], the scores of the primary attack on the pool."""


def attack_shadows(shadows: Shadows) -> Battery:
    """Returns what each attack finds."""
    found: dict[str, dict[str, Aggregate]] = {}
    trials: dict[str, list[Trials]] = {}
    outside = shadows.kinds < 0
    for name, attack in ATTACKS.items():
        targets = left_out_targets(shadows.logits, shadows.members, shadows.labels, outside)
        trials[name] = attack_each(targets, attack)
        for group, each in by_group(trials[name], shadows.kinds[~outside]).items():
            found.setdefault(group, {})[name] = each
    return Battery(found, trials[PRIMARY])


def by_group(trials: list[Trials], kinds: Labels) -> dict[str, Aggregate]:
    """Returns the aggregate over all targets of each group of images, of kinds [N], that exists."""
    groups = {IMAGES: 0} | {name: kind for kind, name in enumerate(KINDS, start=1)}
    rows = {group: kinds == kind for group, kind in groups.items()}
    return {
        group: aggregate(_among(trials, own))
        for group, own in rows.items()
        if own.sum() >= MIN_ROWS
    }


def _among(trials: list[Trials], rows: Bools) -> list[Trials]:
    return [Trials(each.scores[rows], each.members[rows]) for each in trials]


def by_class(
    trials: list[Trials], kinds: Labels, labels: Labels, num_classes: int
) -> list[dict[str, Any] | None]:
    """Returns the leakage of each class's images, canaries apart; `None` where it has too few."""
    rows = [(kinds == 0) & (labels == k) for k in range(num_classes)]
    return [
        _attack(aggregate(_among(trials, own))) if own.sum() >= MIN_ROWS else None for own in rows
    ]


def canary_epsilon(trials: list[Trials], kinds: Labels, delta: float) -> float | None:
    """Returns what the canaries say epsilon is at least; `None`: there are too few.

    Each target is a training run whose canaries were IN by a coin each (nearly: halves are drawn
    without replacement). The quarter with the highest scores is called IN, the one with the lowest
    OUT: fixed beforehand.
    """
    rows = kinds > 0
    called = int(rows.sum()) // 4
    if not called:
        return None
    guesses = [
        guess(each.scores, each.members, positive=called, negative=called)
        for each in _among(trials, rows)
    ]
    return several_runs_epsilon(guesses, delta=delta)


def vulnerability(shadows: Shadows) -> Floats:
    """Returns how far apart IN and OUT shadows are for each image of the pool, [N].

    The difference of the mean scaled logits over their pooled standard deviation: how well LiRA can
    tell this very image. Not a rate: with few shadows a ranking, no more.
    """
    judged = shadows.kinds >= 0
    confidence = of_label(scaled_logits(shadows.logits[:, 0, judged]), shadows.labels[judged])
    members = shadows.members[:, judged]
    inside = np.mean(confidence, axis=0, where=members)
    outside = np.mean(confidence, axis=0, where=~members)
    spread = np.std(confidence - np.where(members, inside, outside), axis=0)
    return np.asarray((inside - outside) / np.maximum(spread, 1e-6))


def overfitted(
    pool: ImageSet, kinds: Labels, population: ImageSet, shadows: int, seed: int
) -> tuple[Shadows, float]:
    """Returns shadows of classifiers that learnt halves of the pool by heart.

    And their mean accuracy on these. The sanity row of an audit: attacks must find them. Of a large
    pool (`kinds` as in `Shadows`) some images are enough to show that.
    """
    rows = evenly_spaced(len(pool), MAX_SANITY)
    pool, kinds = pool.subset(rows), kinds[rows]
    members = half_memberships(shadows, len(pool), numpy_rng(seed, "overfitted", "members"))
    images = standardised(to_unit(np.concatenate([pool.images, population.images])))
    with initial_weights(seed, "overfitted"):
        networks = [_perceptron(images[0].numel(), pool.num_classes) for _ in range(shadows)]
    config = ManyTraining(epochs=100, batch_size=min(50, len(pool) // 2), learning_rate=0.02)
    known = Pool(images[: len(pool)], torch.from_numpy(pool.labels), members)
    stack = train_many(networks, known, config, seed=seed)
    logits = logits_of_many(stack, [images])
    right = logits[:, 0, : len(pool)].argmax(axis=-1) == pool.labels
    learnt = with_population(logits, members, pool.labels, kinds, population.labels)
    return learnt, float(right[members].mean())


def standardised(images: Tensor) -> Tensor:
    """Returns images [N,C,H,W] with mean 0 and deviation 1 of each pixel over them.

    Images that differ in details alone (of a fundus) are not learnt by heart without.
    """
    deviation, mean = torch.std_mean(images, dim=0)
    return (images - mean) / deviation.clamp_min(1 / 255)  # a pixel that never changes stays 0


def _perceptron(inputs: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, num_classes)
    )


def as_result(found: Mapping[str, Aggregate]) -> dict[str, Any]:
    """Returns attacks by name as `result.json` holds them."""
    return {name: _attack(each) for name, each in found.items()}


def _attack(found: Aggregate) -> dict[str, Any]:
    rates = dict(found.detections)
    intervals = {"auc": found.auc} | {str(fpr): rate for fpr, rate in rates.items() if rate}
    return {
        "auc": found.auc.value,
        "tpr_at_fpr": {fpr: rate and rate.value for fpr, rate in rates.items()},
        "ci95": {name: (each.low, each.high) for name, each in intervals.items()},
    }
