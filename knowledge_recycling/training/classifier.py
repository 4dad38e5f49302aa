"""Training of classifiers: the teacher on real labels, students on whatever loss they get.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling import ranks
from knowledge_recycling.compute import descend
from knowledge_recycling.config import DERIVED, Config, Facts
from knowledge_recycling.context import Context
from knowledge_recycling.data.augment import AugmentationName, augment, augment_half
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.errors import RunError
from knowledge_recycling.models.averaging import AveragingObjective
from knowledge_recycling.storage import write_weights
from knowledge_recycling.training.batches import (
    Balance,
    derived_batch_size,
    student_length,
    teacher_length,
)
from knowledge_recycling.training.loop import Batches, GiveUp, Plan, Record, never, train
from knowledge_recycling.training.validation import is_usable, kept, out_of_patience, validate

WEIGHTS = "weights.safetensors"
EARLY = "early.safetensors"
"""Of the snapshot at which a training might have been stopped early (`Fit.early`)."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits [N,K] of augmented images, these images [N,C,H,W] and labels [N] to losses [N]."""


class ClassifierTraining(Config):
    """How a classifier is trained."""

    images_seen: PositiveInt = DERIVED
    """Length of training; unset: 3000 times the square root of the number of real images."""
    batch_size: PositiveInt = DERIVED
    """Images per step; unset: 32 for small sets, up to 128 for large ones."""
    learning_rate: float = Field(0.1, gt=0)
    """Peak learning rate of SGD at batch size 128, scaled with the batch size."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay of SGD, not applied to biases and normalisation."""
    augment: tuple[AugmentationName, ...] = DERIVED
    """Augmentations by name; unset: shift, cutout and the flips measured to keep the class."""
    extra_augment: tuple[AugmentationName, ...] = ()
    """Augmentations that half of the images get on top."""
    snapshots: PositiveInt = 12
    """How often the averaged classifier is validated; the latest that is not clearly worse than the
    best is kept."""
    patience: PositiveInt | None = None
    """Training ends early after this many validations without a better one; unset: never."""

    @staticmethod
    def length(num_images: int) -> int:
        """Returns the derived length for a number of real images."""
        return teacher_length(num_images)

    def derived(self, facts: Facts) -> dict[str, Any]:
        """Derives length, batch size and augmentation from the set."""
        return {
            "images_seen": self.length(facts.num_train),
            "batch_size": derived_batch_size(facts.num_train, largest=128),
            "augment": ("shift", "cutout", *facts.symmetries),
        }


class TeacherTraining(ClassifierTraining):
    """How the teacher is trained: its labels are given, so they may be smoothed and weighted."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each label's probability that is spread over all classes."""
    balance: Balance = "none"
    """Answer to unequal classes: `none`, `loss` (weights) or `sampling` (equal draws)."""


class StudentTraining(ClassifierTraining):
    """How a student is trained.

    The teacher labels each augmented image as it is, so that even augmentations which change the
    class leave the label right ("consistent teaching", Beyer et al. 2022, arXiv 2106.05237). Hence
    the extra ones, which make images look as if they came from another device; the other half of
    the images teaches what they look like from the one at hand. New images come all along, so a
    student has more to learn from than its teacher, and learns for longer.
    """

    images_seen: PositiveInt = DERIVED
    """Length of training; unset: 6000 times the square root of the number of real images, or
    50,000 times its fourth root where that is more."""
    extra_augment: tuple[AugmentationName, ...] = ("intensity", "rotate", "noise")
    """Augmentations that half of the images get on top."""

    @staticmethod
    def length(num_images: int) -> int:
        """Returns the derived length for a number of real images: twice a teacher's or more."""
        return student_length(num_images)


class ClassifierObjective(AveragingObjective):
    """Mean loss over augmented batches, SGD with warm-up and cosine decay.

    A teacher behind the loss is no part of its state.
    """

    STATEFUL = ("classifier", "optimizer")

    def __init__(
        self,
        classifier: nn.Module,
        config: ClassifierTraining,
        loss: Loss,
        *,
        num_steps: int,
        fabric: Fabric,
        class_weight: Tensor | None = None,
    ) -> None:
        super().__init__(classifier)
        self.classifier = classifier
        self.config = config
        self.loss = loss
        self.num_steps = num_steps
        self.fabric = fabric
        self.class_weight = class_weight
        self.peak = config.learning_rate * config.batch_size / 128
        self.optimizer = torch.optim.SGD(
            decayed_groups(classifier, config.weight_decay), self.peak, momentum=0.9, nesterov=True
        )

    def step(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Takes one step on images [N,C,H,W] in [-1, 1] and labels [N]; returns its loss."""
        self.classifier.train()
        images = augment(images, self.config.augment, rng)
        images = augment_half(images, self.config.extra_augment, rng)
        images, labels = ranks.shard(images, labels)
        with self.fabric.autocast():
            logits = self.classifier(images)
            loss = self.loss(logits.float(), images, labels)  # [N]
        if self.class_weight is not None:
            loss = loss * self.class_weight[labels]
        self._set_learning_rate()
        descend(loss.mean(), self.optimizer)
        self.average.update_parameters(self.classifier)
        self.steps += 1
        return {"loss": loss.detach().mean()}

    def _set_learning_rate(self) -> None:
        share = self.steps / self.num_steps
        warm = min(1.0, (share + 1 / self.num_steps) / 0.05)
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def decayed_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns optimiser groups: matrices and kernels decay, vectors (biases, norms) do not."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def hard_loss(smoothing: float = 0.0) -> Loss:
    """Returns the cross-entropy to the labels themselves, smoothed."""

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        del images
        return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)

    return loss


class KeepBest:
    """Snapshot that validates the averaged classifier and saves the one to keep in `folder`.

    And, apart from it, the last one of at most `early` images seen, or else the first.
    """

    def __init__(
        self, val: ImageSet, fabric: Fabric, folder: Path, early: float | None = None
    ) -> None:
        self.val = val
        self.fabric = fabric
        self.folder = folder
        self.early = early

    def __call__(
        self, classifier: nn.Module, images_seen: int, earlier: Sequence[Record]
    ) -> Record:
        """Returns the validation measures; writes the weights if `kept` chooses them."""
        measures = validate(classifier, self.val, self.fabric)
        if kept([*earlier, measures], len(self.val)) == len(earlier):
            write_weights(self.folder / WEIGHTS, classifier)
        if self.early is not None and (images_seen <= self.early or not earlier):
            write_weights(self.folder / EARLY, classifier)
        return measures


class DivergedError(RunError):
    """A classifier gives no numbers in any snapshot of its training."""


@dataclass(frozen=True)
class Fit:
    """All that the training of a classifier depends on, besides its initial weights."""

    name: str
    """Names the random streams and the progress line."""
    config: ClassifierTraining
    loss: Loss
    batches: Batches
    val: ImageSet
    """Chooses the snapshot that is kept."""
    class_weight: npt.NDArray[np.float64] | None = None
    """[K] weights of the loss."""
    early: float | None = None
    """Share of training after which the snapshot is kept apart, as if training had stopped."""
    give_up: GiveUp = never
    """Asked at each snapshot whether training is to end."""


def fit_classifier(classifier: nn.Module, fit: Fit, folder: Path, context: Context) -> list[Record]:
    """Trains `classifier` in `folder`, resuming if begun; returns its validation records.

    Writes `weights.safetensors`, the snapshot that `kept` chooses, `metrics.jsonl` and, if asked
    for, `early.safetensors`.
    """
    config, fabric = fit.config, context.fabric
    plan = Plan(
        seed=context.seed,
        name=fit.name,
        images_seen=config.images_seen,
        batch_size=config.batch_size,
        snapshots=[(i + 1) / config.snapshots for i in range(config.snapshots)],
        out_of_patience=out_of_patience(config.patience, fit.give_up),
    )
    weight = None
    if fit.class_weight is not None:
        weight = torch.from_numpy(fit.class_weight).float().to(fabric.device)
    objective = ClassifierObjective(
        classifier,
        config,
        fit.loss,
        num_steps=plan.num_steps,
        fabric=fabric,
        class_weight=weight,
    )
    early = None if fit.early is None else fit.early * config.images_seen
    snapshot = KeepBest(fit.val, fabric, folder, early)
    with context.reporter.task(fit.name, config.images_seen) as advance:
        records = train(
            objective,
            fit.batches,
            plan,
            snapshot,
            folder=folder,
            advance=advance,
            log=partial(context.log, folder),
        )
    if not any(map(is_usable, records)):
        raise DivergedError(
            f"the training of the {fit.name} diverged",
            where=folder,
            got="logits with NaN or infinite values in every snapshot",
            next_step="lower its training.learning_rate",
        )
    return records
