"""Generative Knowledge Distillation: a student learns synthetic images as its teacher sees them.

GKD of KR (arXiv 2407.15526) and GaFi (arXiv 2305.10118). The frozen teacher labels exactly the
augmented batch the student gets. Hard labels, a fixed set and filtering are settings of the same
stream.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling.config import DERIVED, Config, PluginConfig, plugin, validate
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.models.build import build_classifier, frozen
from knowledge_recycling.models.contracts import Classifier
from knowledge_recycling.models.knobs import Knob, Knobs
from knowledge_recycling.recycling.acceleration import accelerated
from knowledge_recycling.recycling.filtering import FilterConfig
from knowledge_recycling.recycling.synthesis import RegeneratingStream, Source, SynthesisConfig
from knowledge_recycling.rundir import SCRATCH
from knowledge_recycling.storage import read_weights
from knowledge_recycling.training.batches import steps_per_epoch
from knowledge_recycling.training.classifier import (
    WEIGHTS,
    Fit,
    Loss,
    StudentTraining,
    fit_classifier,
    hard_loss,
)
from knowledge_recycling.training.loop import GiveUp, Record, never, steps_for


class StudentConfig(Config):
    """The student and what it learns from."""

    classifier: Annotated[
        PluginConfig, *plugin("models.classifiers", "student.classifier", "resnet")
    ] = DERIVED
    """The network; unset: the teacher's."""
    training: StudentTraining = StudentTraining()
    """Its training."""
    synthesis: SynthesisConfig = SynthesisConfig()
    """The images it learns from."""
    temperature: float = Field(4.0, gt=0)
    """Softmax temperature at which student and teacher are compared, on top of the teacher's
    calibration: 1 is the plain cross-entropy to its soft labels, which hardly tells one sure
    opinion from another; the higher, the more what it says of unlikely classes counts."""
    hard_weight: float = Field(0.0, ge=0, le=1)
    """Weight of the hard label (the class an image was drawn for) in the loss: 0 is GKD,
    1 is training on hard labels alone."""
    prior_correction: float = Field(0.0, ge=0, le=1)
    """How far the soft labels are moved from the teacher's shares of the classes to those of the
    synthetic set: 0 keeps the teacher's opinion, 1 is what it would say had it been trained with
    the synthetic set's shares."""

    def num_images(self, num_train: int) -> int:
        """Returns the images of one synthetic set beside `num_train` real ones."""
        return max(1, round(self.synthesis.set_size * num_train))

    def batch_size(self, num_train: int) -> int:
        """Returns the images of a step: no more than a synthetic set has."""
        return min(self.training.batch_size, self.num_images(num_train))

    def num_drawn(self, num_train: int) -> int:
        """Returns the images drawn for a whole training: those of all synthetic sets."""
        size, batch_size = self.num_images(num_train), self.batch_size(num_train)
        steps = steps_for(self.training.images_seen, batch_size)
        epochs = math.ceil(steps / steps_per_epoch(size, batch_size))
        return size * num_rounds(epochs, self.synthesis.period)


NO_FILTER = -1.0
"""Value of the knob `filter_threshold` that keeps every image."""

KNOBS = {
    "temperature": Knob(4.0, (1.0, 2.0, 4.0, 8.0), tuned=False),
    "hard_weight": Knob(0.0, (0.0, 0.3, 1.0)),
    "prior_correction": Knob(0.0, (0.0, 1.0)),
    "set_size": Knob(1.0, (0.3, 1.0, 4.0), tuned=False),
    "period": Knob(1, (0, 1, 4, 16), tuned=False),
    "filter_threshold": Knob(NO_FILTER, (NO_FILTER, 0.0, 0.3, 0.6, 0.9), tuned=False),
}
"""Settings of the student that tuning may turn beside the generator's knobs."""

SETTINGS = {name: name for name in ("temperature", "hard_weight", "prior_correction")} | {
    "set_size": "synthesis.set_size",
    "period": "synthesis.period",
    "filter_threshold": "synthesis.filter",
}
"""Where each of `KNOBS` is in the student's part of a recipe."""


def student_knobs(config: StudentConfig) -> dict[str, Knob]:
    """Returns `KNOBS` with the recipe's own values as their defaults."""
    synthesis = config.synthesis
    own = {
        "temperature": config.temperature,
        "hard_weight": config.hard_weight,
        "prior_correction": config.prior_correction,
        "set_size": synthesis.set_size,
        "period": synthesis.period,
        "filter_threshold": synthesis.filter.threshold if synthesis.filter else NO_FILTER,
    }
    return {name: replace(knob, default=own[name]) for name, knob in KNOBS.items()}


def with_knobs(config: StudentConfig, knobs: Knobs) -> StudentConfig:
    """Returns the student with those of `knobs` that are its own."""
    own = {name: knobs[name] for name in KNOBS if name in knobs and name == SETTINGS[name]}
    synthesis: dict[str, Any] = {}
    if "set_size" in knobs:
        synthesis["set_size"] = knobs["set_size"]
    if "period" in knobs:
        synthesis["period"] = round(knobs["period"])
    if "filter_threshold" in knobs:
        threshold = knobs["filter_threshold"]
        known = config.synthesis.filter or FilterConfig()
        kept = known.model_copy(update={"threshold": threshold})
        synthesis["filter"] = kept if threshold >= 0 else None
    return config.model_copy(
        update=own | {"synthesis": config.synthesis.model_copy(update=synthesis)}
    )


def check_choices(config: StudentConfig, space: Mapping[str, Knob]) -> None:
    """Checks that a recipe may have all values to be tried of the student's knobs in `space`.

    Raises:
        RecipeError: It may not have one.
    """
    for name in KNOBS.keys() & space.keys():
        for value in space[name].choices:
            turned = with_knobs(config, {name: value})
            validate(StudentConfig, turned.model_dump(), f"tuning.choices.{name}")


class Teacher(nn.Module):
    """A frozen classifier and the temperature that calibrates it on validation."""

    def __init__(self, classifier: Classifier, temperature: float) -> None:
        super().__init__()
        self.classifier = frozen(classifier)
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Returns calibrated logits [N,K] of images [N,C,H,W] in [-1, 1]."""
        logits: Tensor = self.classifier(images)
        return logits.float() / self.temperature


class Ensemble(nn.Module):
    """Teachers that label together (Hinton et al. 2015, arXiv 1503.02531, section 1)."""

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the mean of the teachers' calibrated logits [N,K] of images [N,C,H,W]."""
        return torch.stack([teacher(images) for teacher in self.teachers]).mean(dim=0)


Labeller = Callable[[Tensor], Tensor]
"""Calibrated logits [N,K] of images [N,C,H,W] in [-1, 1]."""


def distillation_loss(label: Labeller, config: StudentConfig, log_odds: Tensor) -> Loss:
    """Returns the loss of a student: how far it is from the teachers' opinion and the hard labels.

    (1 - w) T^2 KL(softmax((z + c b) / T), softmax(s / T)) + w CE(onehot(y), softmax(s)), s the
    student's logits of the augmented batch, z those that `label` gives, T the temperature
    (Hinton et al. 2015, arXiv 1503.02531, section 2), w the hard weight, c the prior correction
    and b = `log_odds` [K], the logarithm of each class's share in the synthetic set over that in
    the teacher's (logit adjustment, Menon et al. 2021, arXiv 2007.07314, section 4).
    """
    hard, weight = hard_loss(), config.hard_weight
    moved = config.prior_correction * log_odds

    def softened(logits: Tensor) -> Tensor:
        return functional.log_softmax(logits / config.temperature, dim=1)

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        if weight == 1:  # no teacher is asked
            return hard(logits, images, labels)
        with torch.no_grad():
            opinion = softened(label(images) + moved.to(images.device))
        said = softened(logits)
        divergence = functional.kl_div(said, opinion, reduction="none", log_target=True).sum(dim=1)
        soft = config.temperature**2 * divergence
        return torch.lerp(soft, hard(logits, images, labels), weight)

    return loss


@dataclass(frozen=True)
class Lesson:
    """All that a student's training depends on."""

    config: StudentConfig
    source: Source
    teachers: Ensemble
    """Who label."""
    teacher_prior: npt.NDArray[np.float64]
    """[K] shares of the classes the teachers were trained with."""
    num_train: int
    """Real training images: the unit of `set_size`."""
    val: ImageSet
    """Real images that choose the best snapshot."""
    name: str
    """Names the random streams and the progress line."""

    @property
    def log_odds(self) -> Tensor:
        """[K] logarithms of each class's share in the synthetic set over the teacher's."""
        return torch.from_numpy(np.log(self.source.prior / self.teacher_prior)).float()


def distil(lesson: Lesson, folder: Path, context: Context, give_up: GiveUp = never) -> list[Record]:
    """Trains a student in `folder` on synthetic images alone; returns its validation records.

    Training ends early where `give_up` says so. Writes `weights.safetensors` (the best snapshot),
    `metrics.jsonl`, and what `accelerated` leaves.
    """
    config, val = lesson.config, lesson.val
    size = config.num_images(lesson.num_train)
    batch_size = config.batch_size(lesson.num_train)
    training = config.training.model_copy(update={"batch_size": batch_size})
    drawn = config.num_drawn(lesson.num_train)
    source = accelerated(lesson.source, config.synthesis.evaluations, drawn, folder, context)
    stream = RegeneratingStream(
        source,
        size=size,
        batch_size=batch_size,
        period=config.synthesis.period,
        name=lesson.name,
        folder=folder / SCRATCH,
        context=context,
    )
    fit = Fit(
        name=lesson.name,
        config=training,
        loss=distillation_loss(lesson.teachers, config, lesson.log_odds),
        batches=stream,
        val=val,
        give_up=give_up,
    )
    return fit_classifier(new_student(lesson, context), fit, folder, context)


def num_rounds(epochs: int, period: int) -> int:
    """Returns the synthetic sets that a student sees in so many epochs.

    >>> [num_rounds(9, period) for period in (0, 1, 4)]
    [1, 9, 3]
    """
    return max(1, math.ceil(epochs / period)) if period else 1


def new_student(lesson: Lesson, context: Context) -> Classifier:
    """Returns the untrained student of a lesson."""
    student = build_classifier(
        lesson.config.classifier,
        lesson.val.shape,
        lesson.val.num_classes,
        fabric=context.fabric,
        seed=context.seed,
        name=lesson.name,
    )
    return context.compiled(student)


def trained_student(lesson: Lesson, folder: Path, context: Context) -> Classifier:
    """Returns the student that `distil` left in `folder`, frozen."""
    student = new_student(lesson, context)
    read_weights(folder / WEIGHTS, student)
    return frozen(student)
