"""What a generator setting is worth: the CAS of a cheap student trained with GKD on its images.

Checkpoint Optimisation and Tuning ask the same question, on the validation split only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from knowledge_recycling.config import Config
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.errors import RunError
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.recycling.distillation import (
    Lesson,
    StudentConfig,
    distil,
    trained_student,
    with_knobs,
)
from knowledge_recycling.recycling.synthesis import Source, draw
from knowledge_recycling.rundir import Fingerprint, perform
from knowledge_recycling.storage import read_json, write_json
from knowledge_recycling.training.classifier import DivergedError
from knowledge_recycling.training.loop import GiveUp, Record, never
from knowledge_recycling.training.validation import (
    kept,
    predict_logits,
    standard_error,
)

SCORE = "score.json"
PROBE_SIZE = 64
"""Images looked at before a student is trained on a generator that may be broken."""


class SelectionConfig(Config):
    """The cheap students that score candidates and knob settings."""

    training_share: float = Field(0.05, gt=0, le=1)
    """Length of their training, as a share of the final student's."""
    set_share: float = Field(0.5, gt=0, le=1)
    """Size of their one fixed synthetic set, as a share of the final student's."""
    finalists: PositiveInt = 2
    """Candidates, and then knob settings, for which full students are trained, of which the best on
    validation is kept: the last candidate or the default knobs, what cheap students found best, and
    the next best. 2 costs further students only where cheap ones left the last candidate or the
    defaults; 1 trusts the cheap students, and so does a run with several generators, which are
    chosen apart."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Measures on the validation split of a student trained on synthetic images."""

    cas: float | None = None
    """Accuracy in [0, 1]; `None`: see `failure`."""
    robust_cas: float | None = None
    """Accuracy on corrupted copies of the same images."""
    auroc: float | None = None
    loss: float | None = None
    """Cross-entropy in nats."""
    failure: str | None = None
    """Why no student was trained."""
    images_per_second: float | None = None
    """Of sampling."""
    num_val: int = 0
    """Images behind the measures."""
    leakage: float | None = None
    """AUC of the loss attack on the student (see `loss_attack`); `None`: not measured."""

    @property
    def merit(self) -> float:
        """What selection maximises: the mean of `cas` and `robust_cas`; -1 after a failure."""
        if self.cas is None or self.robust_cas is None:
            return -1.0
        return (self.cas + self.robust_cas) / 2

    @property
    def standard_error(self) -> float:
        """Of `merit`, binomial; both accuracies are of the same images, so they count once."""
        return standard_error(self.merit, self.num_val) if self.failure is None else 0.0

    def least_cas(self, tries: int) -> float:
        """Returns the least `cas` that is not clearly worse than this one, the best of so many.

        The difference of two accuracies has the square root of 2 times the error of one.
        """
        cas = self.cas or 0.0
        return cas - max(2.0, math.sqrt(2) * luck(tries)) * standard_error(cas, self.num_val)


def cheap(config: StudentConfig, selection: SelectionConfig, knobs: Knobs) -> StudentConfig:
    """Returns the student that stands in, while choosing, for that of `config` with `knobs`.

    It learns from one fixed set, unless the regeneration period is among the knobs.
    """
    config = with_knobs(config, knobs)
    training, synthesis = config.training, config.synthesis
    images_seen = max(1, round(training.images_seen * selection.training_share))
    return config.model_copy(
        update={
            "training": training.model_copy(update={"images_seen": images_seen, "snapshots": 3}),
            "synthesis": synthesis.model_copy(
                update={
                    "set_size": synthesis.set_size * selection.set_share,
                    "period": synthesis.period if "period" in knobs else 0,
                    "evaluations": 0,  # so few images do not pay for a distillation
                }
            ),
        }
    )


def score(
    lesson: Lesson,
    fingerprint: Fingerprint,
    folder: Path,
    context: Context,
    *,
    members: ImageSet | None = None,
    give_up: GiveUp = never,
) -> Score:
    """Returns the score of a lesson, from its part's folder if it is done.

    Args:
        lesson: What the cheap student learns.
        fingerprint: What the score depends on.
        folder: Of the part.
        context: Its surroundings.
        members: The real training images, if leakage is to be measured.
        give_up: Asked at each snapshot whether the student is given up.
    """

    def work(folder: Path) -> None:
        found = _measure(lesson, folder, context, give_up)
        if members is not None and found.failure is None:
            student = trained_student(lesson, folder, context)
            found = replace(found, leakage=loss_attack(student, members, lesson.val, context))
        write_json(folder / SCORE, asdict(found))

    perform(folder, fingerprint, work)
    return read_score(folder)


def read_score(folder: Path) -> Score:
    """Returns the score that the finished part in `folder` holds."""
    return Score(**read_json(folder / SCORE))


def _measure(lesson: Lesson, folder: Path, context: Context, give_up: GiveUp) -> Score:
    failure = defect(lesson.source, context)
    if failure is not None:
        return Score(failure=failure)
    try:
        records = distil(lesson, folder, context, give_up)
    except DivergedError as error:
        return Score(failure=error.what)
    if give_up(records):
        return given_up(records)
    best, tally = records[kept(records, len(lesson.val))], lesson.source.tally
    rate = tally.sampled / tally.seconds if tally.sampled else None
    return replace(score_of(best, len(lesson.val)), images_per_second=rate)


def given_up(records: Sequence[Record]) -> Score:
    """Returns the score of a student that was given up at the last of its `records`."""
    return Score(failure=f"given up after {records[-1]['images_seen']:.0f} images: behind")


def score_of(record: Record, num_val: int) -> Score:
    """Returns the score of a student's snapshot."""
    return Score(
        cas=record["val_accuracy"],
        robust_cas=record["val_robust_accuracy"],
        auroc=record["val_auroc"],
        loss=record["val_loss"],
        num_val=num_val,
    )


def loss_attack(
    classifier: nn.Module, members: ImageSet, holdout: ImageSet, context: Context
) -> float:
    """Returns the AUC, 0 to 1, with which a small loss tells members from the holdout.

    Yeom 2018 (arXiv 1709.01604): the cheapest attack, which needs no shadows, so that it can be
    asked of every setting; an audit finds more. At most as many members as there are holdout images
    are asked, evenly spaced.
    """
    asked = (members.evenly(len(holdout)), holdout)
    losses = [_losses(classifier, each, context) for each in asked]
    is_member = np.repeat([1, 0], [len(each) for each in losses])
    return float(roc_auc_score(is_member, -np.concatenate(losses)))


def _losses(
    classifier: nn.Module, image_set: ImageSet, context: Context
) -> npt.NDArray[np.float64]:
    logits = torch.from_numpy(predict_logits(classifier, image_set, context.fabric))
    labels = torch.from_numpy(image_set.labels)
    return np.asarray(functional.cross_entropy(logits, labels, reduction="none"))


def bar_of(records: Sequence[Record], num_val: int) -> tuple[float, ...]:
    """Returns the CAS that a setting must reach at each snapshot but the last not to be given up.

    That is what the defaults reached there, less a standard error. It is known before any setting
    is tried, so that, unlike with Optuna's pruners, the order in which trials end is of no account.
    """
    accuracies = [record["val_accuracy"] for record in records[:-1]]
    return tuple(each - standard_error(each, num_val) for each in accuracies)


def below(records: Sequence[Record], bar: Sequence[float]) -> bool:
    """Returns whether the last record's accuracy is below its snapshot's bar, if that has one."""
    return len(records) <= len(bar) and records[-1]["val_accuracy"] < bar[len(records) - 1]


def outdone(
    records: Sequence[Record], favourite: Sequence[Record], num_val: int, where: Path
) -> bool:
    """Returns whether a full student would not be chosen over the `favourite` of the same age.

    Twice running, since one snapshot of the better one may be worse. What makes a cheap student
    better than the favourite's may only make it faster, which shows no more once both have learnt
    for a while: there is no need to wait for the end.
    """
    both = list(zip(favourite, records, strict=False))[-2:]
    pairs = [[score_of(each, num_val) for each in pair] for pair in both]
    return len(pairs) == 2 and all(best_of(pair, 0, where) == 0 for pair in pairs)


def defect(source: Source, context: Context) -> str | None:
    """Returns why the source's images cannot teach anything, `None` where they can."""
    labels = torch.arange(PROBE_SIZE) % len(source.class_names)
    images = draw(source, labels.to(context.fabric.device), torch.arange(PROBE_SIZE), context)
    if not images.isfinite().all():
        return "images with NaN or infinite values"
    if images.std(dim=0).max() < 1 / 255:
        return "all images are the same"
    return None


def best_of(
    scores: Sequence[Score], favourite: int, where: Path, leakage_limit: float | None = None
) -> int:
    """Returns the position of the best score, the `favourite`'s if none is clearly better.

    CAS decides where it can tell: who is clearly below the best is out (`Score.least_cas`), and so
    is who has a higher loss than the favourite, whose accuracy then rose by chance or on corrupted
    copies alone. Among the others the best merit wins, if it is above the favourite's by more than
    chance would bring the luckiest of so many (`luck`). Ties are broken by the lower loss. Under a
    limit those that leak more are left out first; if all do, the one that leaks least is returned.

    Raises:
        RunError: No score is usable.
    """
    usable = [i for i, each in enumerate(scores) if each.failure is None]
    if not usable:
        raise RunError(
            "no candidate gives usable images",
            where=where,
            got="; ".join(sorted({str(each.failure) for each in scores})),
            next_step="train the generator longer (generator_training.images_seen) or with a "
            "smaller generator.learning_rate, then --redo generator; if students diverged, lower "
            "student.training.learning_rate",
        )
    if leakage_limit is not None:
        least = min(usable, key=lambda i: _or_inf(scores[i].leakage))
        usable = [i for i in usable if _or_inf(scores[i].leakage) <= leakage_limit] or [least]
    top = max(usable, key=lambda i: scores[i].cas or 0.0)
    tries = len(scores) - 1
    least_cas = scores[top].least_cas(tries)
    usable = [i for i in usable if (scores[i].cas or 0.0) >= least_cas]
    if favourite in usable:
        usable = [i for i in usable if _or_inf(scores[i].loss) <= _or_inf(scores[favourite].loss)]
    best = max(usable, key=lambda i: (scores[i].merit, -_or_inf(scores[i].loss)))
    noise = scores[favourite].standard_error * luck(tries)
    clear = scores[best].merit - scores[favourite].merit > noise
    return favourite if favourite in usable and not clear else best


def luck(tries: int) -> float:
    """Returns how far the best of so many equals is above the mean, in standard deviations.

    sqrt(2 ln n), which bounds the expected maximum of n standard normal variables; at least 1.

    >>> [round(luck(n), 2) for n in (1, 2, 5, 20)]
    [1.0, 1.18, 1.79, 2.45]
    """
    return max(1.0, math.sqrt(2 * math.log(max(tries, 1))))


def _or_inf(measure: float | None) -> float:
    return math.inf if measure is None else measure
