"""What a generator setting is worth: the CAS of a cheap student trained with GKD on its images.

Checkpoint Optimisation and Tuning ask the same question, on the validation split only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import Field

from knowledge_recycling.config import Config
from knowledge_recycling.context import Context
from knowledge_recycling.errors import RunError
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.recycling.distillation import Lesson, StudentConfig, distil, with_knobs
from knowledge_recycling.recycling.synthesis import Source, draw
from knowledge_recycling.rundir import Fingerprint, perform
from knowledge_recycling.storage import read_json, write_json
from knowledge_recycling.training.classifier import DivergedError, kept, standard_error

SCORE = "score.json"
PROBE_SIZE = 64
"""Images looked at before a student is trained on a generator that may be broken."""


class SelectionConfig(Config):
    """The cheap students that score candidates and knob settings."""

    training_share: float = Field(0.2, gt=0, le=1)
    """Length of their training, as a share of the final student's."""
    set_share: float = Field(0.5, gt=0, le=1)
    """Size of their one fixed synthetic set, as a share of the final student's."""


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
                }
            ),
        }
    )


def score(lesson: Lesson, fingerprint: Fingerprint, folder: Path, context: Context) -> Score:
    """Returns the score of a lesson, from its part's folder if it is done."""

    def work(folder: Path) -> None:
        write_json(folder / SCORE, asdict(_measure(lesson, folder, context)))

    perform(folder, fingerprint, work)
    return read_score(folder)


def read_score(folder: Path) -> Score:
    """Returns the score that the finished part in `folder` holds."""
    return Score(**read_json(folder / SCORE))


def _measure(lesson: Lesson, folder: Path, context: Context) -> Score:
    failure = defect(lesson.source, context)
    if failure is not None:
        return Score(failure=failure)
    try:
        records = distil(lesson, folder, context)
    except DivergedError as error:
        return Score(failure=error.what)
    best, tally = records[kept(records, len(lesson.val))], lesson.source.tally
    return Score(
        cas=best["val_accuracy"],
        robust_cas=best["val_robust_accuracy"],
        auroc=best["val_auroc"],
        loss=best["val_loss"],
        images_per_second=tally.sampled / tally.seconds if tally.sampled else None,
        num_val=len(lesson.val),
    )


def defect(source: Source, context: Context) -> str | None:
    """Returns why the source's images cannot teach anything, `None` where they can."""
    labels = torch.arange(PROBE_SIZE) % len(source.class_names)
    images = draw(source, labels.to(context.fabric.device), torch.arange(PROBE_SIZE), context)
    if not images.isfinite().all():
        return "images with NaN or infinite values"
    if images.std(dim=0).max() < 1 / 255:
        return "all images are the same"
    return None


def best_of(scores: Sequence[Score], favourite: int, where: Path) -> int:
    """Returns the position of the best score, the `favourite`'s if none is clearly better.

    Clearly: by more than a standard error of the favourite's merit; less is likelier noise of the
    validation images than a better setting. Ties are broken by the lower loss.

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
            "smaller generator.learning_rate, then --redo generator",
        )
    best = max(usable, key=lambda i: (scores[i].merit, -(scores[i].loss or 0.0)))
    clear = scores[best].merit - scores[favourite].merit > scores[favourite].standard_error
    return best if clear else favourite
