"""What leakage and utility are compared with: classifiers of the same members, made otherwise.

Every one is a target like teacher and student and attacked in the same way; what it is worth is
read off the same answers, on the validation split.

Shapes: S shadows, P images of the population, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import softmax

from knowledge_recycling.config import Config
from knowledge_recycling.evaluation.utility import Estimate
from knowledge_recycling.privacy.dp import DPConfig
from knowledge_recycling.privacy.metrics import Aggregate, accuracy_over_privacy, jackknifed
from knowledge_recycling.privacy.signals import AnyFloats, Bools, Floats, Labels
from knowledge_recycling.training.validation import macro_auroc

FPR = 0.01
"""The false positive rate of the table and the figure."""

SetSize = Annotated[float, Field(gt=0, le=100)]


class YardsticksConfig(Config):
    """Classifiers made in each shadow beside teacher and student, to compare them with.

    The students among them learn a fixed synthetic set; the mode `classifier` makes none.
    """

    early_stop: float = Field(0.25, ge=0, lt=1)
    """Share of its training after which the early-stopped teacher is taken; 0: none."""
    soft_set_sizes: tuple[SetSize, ...] = (0.3, 4.0)
    """GKD students: how many distinct images each sees, as a multiple of the real ones."""
    hard_set_sizes: tuple[SetSize, ...] = (4.0,)
    """Students on hard labels, likewise."""
    dp: DPConfig = DPConfig()


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a target besides its answers."""

    epsilon: float | None = None
    """Of its guarantee."""
    delta: float | None = None
    distinct_images: float | None = None
    """Synthetic images that it saw, as a multiple of the real ones."""


@dataclass(frozen=True, kw_only=True)
class Yardstick(About):
    """One row of the table: utility beside leakage."""

    name: str
    accuracy: Estimate
    """On the validation split, the mean over the shadows."""
    auroc: Estimate
    auc: Estimate
    """Of the attack declared beforehand."""
    tpr: Estimate | None
    """Members that it finds at `FPR` false positives; `None`: not resolvable."""
    aop: float
    """Accuracy over privacy."""


def yardstick(
    name: str, logits: AnyFloats, labels: Labels, found: Aggregate, about: About
) -> Yardstick:
    """Returns the row of a target from its shadows' logits [S,P,K] of the population."""
    accuracy, auroc = mean_utility(logits, labels)
    return Yardstick(
        name=name,
        accuracy=accuracy,
        auroc=auroc,
        auc=found.auc,
        tpr=dict(found.detections)[FPR],
        aop=accuracy_over_privacy(accuracy.value, found.auc.value),
        **vars(about),
    )


def random_guess(num_classes: int) -> dict[str, float | str]:
    """Returns the row of a classifier that guesses: exact, hence without intervals."""
    accuracy, half = 1 / num_classes, 0.5
    aop = accuracy_over_privacy(accuracy, half)
    measures = {"accuracy": accuracy, "auroc": half, "auc": half, "tpr": FPR, "aop": aop}
    return {"name": "random guess", **measures}


def mean_utility(logits: AnyFloats, labels: Labels) -> list[Estimate]:
    """Returns the mean accuracy and AUROC of S classifiers from their logits [S,P,K].

    >>> labels = np.tile([0, 1], 200)
    >>> right, hesitant = np.eye(2)[labels], np.array([2.0, 0.0]) + np.eye(2)[labels]
    >>> [round(each.value, 3) for each in mean_utility(np.stack([right, hesitant]), labels)]
    [0.75, 1.0]
    """
    chances = softmax(np.asarray(logits, dtype=np.float64), axis=-1)
    known: dict[tuple[int, bytes], Floats] = {}

    def of_one(s: int, images: Bools) -> Floats:
        key = (s, images.tobytes())
        if key not in known:
            seen, true = chances[s, images], labels[images]
            right = float(np.mean(seen.argmax(axis=-1) == true))
            known[key] = np.array([right, macro_auroc(seen, true)])
        return known[key]

    def means(targets: Bools, images: Bools) -> Floats:
        each = [of_one(int(s), images) for s in np.flatnonzero(targets)]
        return np.asarray(np.mean(each, axis=0))

    return jackknifed(means, len(chances), len(labels))
