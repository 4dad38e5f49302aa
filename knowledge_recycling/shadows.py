"""One shadow: a run like this one on a random half of the members, and what its models say.

Shapes: N images of the pool, P of the population, Q queries, K classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor

from knowledge_recycling import choosing, stages
from knowledge_recycling.artefacts import (
    ENSEMBLE,
    STUDENT,
    Run,
    candidate_files,
    chosen_knobs,
    chosen_source,
    generator_name,
    lesson_of,
    load_ensemble,
    load_student,
    load_teacher,
    new_classifier,
    student_source,
)
from knowledge_recycling.context import Context
from knowledge_recycling.data.augment import augment
from knowledge_recycling.data.images import ImageSet, Splits, to_bytes, to_unit
from knowledge_recycling.errors import DataError
from knowledge_recycling.models.build import frozen
from knowledge_recycling.models.contracts import Classifier
from knowledge_recycling.privacy.attacks import synthetic
from knowledge_recycling.privacy.dp import train_private
from knowledge_recycling.privacy.signals import Bools, Floats, Signals
from knowledge_recycling.privacy.yardsticks import About
from knowledge_recycling.randomness import named_seed, rng
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.recycling.distillation import with_knobs
from knowledge_recycling.recycling.synthesis import Source, draw_set, open_set
from knowledge_recycling.rundir import SCRATCH, Fingerprint, perform
from knowledge_recycling.storage import (
    read_json,
    read_weights,
    value_digest,
    write_arrays,
    write_json,
)
from knowledge_recycling.training.classifier import EARLY, WEIGHTS, DivergedError
from knowledge_recycling.training.validation import predict_logits

SIGNALS = "signals.npz"
ABOUT = "about.json"
"""What is known of each target, by name."""
LOSSES = ".losses"
"""Ends the names of those of `SIGNALS` that say how badly a generator explains each image."""
MADE_BY = (
    "teacher",
    "further_teachers",
    "generator",
    "further_generators",
    "generator_training",
    "student",
    "selection",
    "audit",
)
"""Parts of a recipe that a shadow depends on."""
VERSION = 4
"""Raised when the same settings and members begin to give other answers."""
SYNTHETIC_ATTACKS = {
    "distance": synthetic.Config(method="distance"),
    "density": synthetic.Config(method="knn_density", neighbours=5),
}


@dataclass(frozen=True)
class Order:
    """A shadow to be made: all that it depends on; may travel to another process."""

    run: Run
    """The audited run."""
    pool: ImageSet
    """Members and canaries."""
    members: Bools
    """[N], the half of the pool that this shadow is trained on."""
    number: int
    folder: Path
    """The part of the audit to write."""

    def fingerprint(self) -> Fingerprint:
        """Returns all that the shadow's answers depend on."""
        whole = len(self.run.members)
        settings = shortened(self.run.recipe, whole, whole // 2).model_dump(mode="json")
        # without further teachers or generators, shadows made before there were any hold
        return {
            "shadow": self.number,
            "members": self.members.nonzero()[0].tolist(),
            "pipeline": VERSION,
            "recipe": value_digest({name: settings[name] for name in MADE_BY if settings[name]}),
        }


@dataclass(frozen=True)
class Outcome:
    """How making a shadow ended."""

    number: int
    failure: str | None
    """`None`: it is done."""


def fulfil(order: Order) -> Outcome:
    """Makes the shadow, or goes on with it; a failure that is of this half alone is an outcome."""
    try:
        perform(order.folder, order.fingerprint(), partial(make_shadow, order))
    except (DataError, DivergedError) as error:  # of this half: the others may do
        return Outcome(order.number, str(error))
    return Outcome(order.number, None)


def make_shadow(order: Order, folder: Path) -> None:
    """Runs the pipeline on the members and writes what it says of every image."""
    run, audit = order.run, order.run.recipe.audit
    members = order.pool.subset(order.members.nonzero()[0])
    shadow = shadow_run(run, members, order.number, folder / SCRATCH)
    early = audit.yardsticks.early_stop or None
    _perform(shadow, "teacher", partial(stages.train_teacher, early=early))
    if audit.mode == "pipeline":
        _perform(shadow, ENSEMBLE, stages.train_ensemble)
        _perform(shadow, "generator", stages.train_generator)
        _choose(run, shadow)
        _perform(shadow, "student", stages.distil_student)
    answers: dict[str, npt.NDArray[Any]] = {}
    about: dict[str, About] = {}
    for target in targets_of(shadow):
        answers[target.name] = queried(shadow, target.classifier, order.pool)
        about[target.name] = target.about
    if audit.mode == "pipeline":
        teachers = load_ensemble(shadow)
        answers |= synthetic_scores(shadow, student_source(shadow, teachers), order.pool)
        answers |= generator_losses(shadow, chosen_source(shadow, teachers), order.pool)
    write_arrays(folder / SIGNALS, answers)
    write_json(folder / ABOUT, {name: asdict(each) for name, each in about.items()})
    shutil.rmtree(shadow.folder)


def _perform(shadow: Run, name: str, work: Any) -> None:
    perform(shadow.folder / name, {"stage": name}, partial(work, shadow))


def _choose(run: Run, shadow: Run) -> None:
    if run.recipe.audit.selection == "repeated":
        _perform(shadow, "candidates", choosing.optimise_checkpoint)
        _perform(shadow, "tuning", choosing.tune_knobs)
        return
    for audited, each in zip(run.each_generator, shadow.each_generator, strict=True):
        candidate = {"name": candidate_files(each)[-1].stem, "chosen": True}
        trial = {"trial": 0, "knobs": dict(chosen_knobs(audited)), "chosen": True}
        write_json(shadow.folder / "candidates" / each.part / "candidates.json", [candidate])
        write_json(shadow.folder / "tuning" / each.part / "trials.json", [trial])


def shadow_run(run: Run, members: ImageSet, number: int, folder: Path) -> Run:
    """Returns the run of one shadow: this run's recipe on other members, with another seed."""
    context = run.context
    seed = named_seed(context.seed, "audit", "shadow", number)
    return replace(
        run,
        folder=folder,
        recipe=shortened(run.recipe, len(run.members), len(members)),
        splits=Splits(members, run.val, run.val),
        digests={},
        context=Context(context.fabric, seed, context.reporter, compile=context.compile),
    )


def shortened(recipe: Recipe, whole: int, part: int) -> Recipe:
    """Returns the recipe for `part` of the `whole` images: lengths change as derived ones do."""

    def shorter(training: Any) -> Any:
        images_seen = round(training.images_seen * training.length(part) / training.length(whole))
        return training.model_copy(update={"images_seen": images_seen})

    generator = shorter(recipe.generator_training)
    if recipe.audit.selection == "fixed":  # the others would not be looked at
        generator = generator.model_copy(update={"candidates": 1})
    teacher, student = recipe.teacher, recipe.student
    return recipe.model_copy(
        update={
            "teacher": teacher.model_copy(update={"training": shorter(teacher.training)}),
            "generator_training": generator,
            "student": student.model_copy(update={"training": shorter(student.training)}),
        }
    )


@dataclass(frozen=True)
class Target:
    """A trained classifier to attack."""

    name: str
    classifier: Classifier
    about: About


def targets_of(shadow: Run) -> Iterator[Target]:
    """Yields teacher, student and yardsticks of a shadow, one in memory at a time."""
    yardsticks, whole = shadow.recipe.audit.yardsticks, shadow.recipe.audit.mode == "pipeline"
    yield Target("teacher", load_teacher(shadow).classifier, About())
    if whole:
        drawn = read_json(shadow.folder / "student" / STUDENT)["sampling"]["sampled"]
        about = About(distinct_images=drawn / len(shadow.members))
        yield Target("student", load_student(shadow), about)
    if yardsticks.early_stop:
        early = new_classifier(shadow, "teacher")
        read_weights(shadow.folder / "teacher" / EARLY, early)
        yield Target("early-stopped teacher", frozen(early), About())
    if whole:
        for size in yardsticks.soft_set_sizes:
            yield fixed_set_student(shadow, f"GKD student on {size:g}x", 0.0, size)
        for size in yardsticks.hard_set_sizes:
            yield fixed_set_student(shadow, f"hard-label student on {size:g}x", 1.0, size)
    for epsilon in yardsticks.dp.epsilons:
        name = f"DP-SGD with epsilon {epsilon:g}"
        made = train_private(shadow.members, yardsticks.dp, epsilon, shadow.context, name)
        yield Target(name, made.classifier, About(epsilon=made.epsilon, delta=made.delta))


def fixed_set_student(shadow: Run, name: str, hard_weight: float, size: float) -> Target:
    """Returns a student like the shadow's own, but of one fixed set of `size` times the members.

    Its initial weights and its random streams are those of the shadow's own student.
    """
    config = with_knobs(shadow.recipe.student, chosen_knobs(shadow))
    synthesis = config.synthesis.model_copy(update={"set_size": size, "period": 0})
    config = config.model_copy(update={"hard_weight": hard_weight, "synthesis": synthesis})
    teachers = load_ensemble(shadow)
    source = chosen_source(shadow, teachers)
    lesson = lesson_of(shadow, teachers, source, config=config, name="student")
    _perform(shadow, name, partial(stages.learn, lesson))
    classifier = new_classifier(shadow, "student")
    read_weights(shadow.folder / name / WEIGHTS, classifier)
    return Target(name, frozen(classifier), About(distinct_images=size))


def queried(shadow: Run, classifier: Classifier, pool: ImageSet) -> npt.NDArray[np.float32]:
    """Returns the classifier's logits of pool and population, [Q,N+P,K]; query 0 is unaugmented."""
    names = shadow.recipe.generator_training.augment or ()
    answers = []
    for query in range(shadow.recipe.audit.queries):
        parts = []
        for image_set in (pool, shadow.val):
            seen = image_set
            if query:
                images = augment(to_unit(image_set.images), ("shift", *names), rng(query, "query"))
                seen = replace(image_set, images=to_bytes(images).numpy())
            parts.append(predict_logits(classifier, seen, shadow.context.fabric))
        answers.append(np.concatenate(parts))
    return np.asarray(np.stack(answers), dtype=np.float32)


def generator_losses(shadow: Run, source: Source, pool: ImageSet) -> dict[str, Floats]:
    """Returns how badly each generator explains each image, [N], if its kind can say.

    A GAN's cannot: its discriminator is no part of a candidate, so it is not released either.
    """
    found = {}
    for run, one in zip(shadow.each_generator, source.each_generator, strict=True):
        losses = getattr(one.generator, "losses", None)
        if losses is not None:
            found[generator_name(run) + LOSSES] = _losses(losses, pool, shadow.context.fabric)
    return found


def _losses(
    losses: Callable[[Tensor, Tensor], Tensor], pool: ImageSet, fabric: Fabric
) -> npt.NDArray[np.float64]:
    parts = []
    for start in range(0, len(pool), 512):
        images = to_unit(pool.images[start : start + 512]).to(fabric.device)
        labels = torch.from_numpy(pool.labels[start : start + 512]).to(fabric.device)
        with fabric.autocast():
            parts.append(losses(images, labels).double().cpu())
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


def synthetic_scores(shadow: Run, source: Source, pool: ImageSet) -> dict[str, Floats]:
    """Returns scores [N] of the attacks on a synthetic set as large as the shadow's members."""
    path = shadow.folder / "synthetic.npy"
    draw_set(source, len(shadow.members), path, ("audit", "synthetic"), shadow.context)
    drawn = open_set(path, pool.class_names)
    views: dict[str, Callable[[ImageSet], Floats]] = {
        "pixels": _pixels,
        "features": partial(stages.features, shadow, load_teacher(shadow).classifier),
    }
    scores = {}
    for space, view in views.items():
        seen = Signals(
            labels=pool.labels,
            features=view(pool),
            synthetic_features=view(drawn),
            reference_features=view(shadow.val),
        )
        for name, config in SYNTHETIC_ATTACKS.items():
            scores[f"synthetic.{name}_{space}"] = synthetic.score(seen, config)
    return scores


def _pixels(image_set: ImageSet) -> Floats:
    return image_set.images.reshape(len(image_set), -1) / 255
