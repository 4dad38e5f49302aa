"""The stages' work: each reads what earlier stages left in the run folder and writes its own.

`pipeline.py` says in which order they run and what each depends on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from knowledge_recycling.artefacts import (
    ENSEMBLE,
    STUDENT,
    TEACHER,
    Run,
    chosen,
    chosen_knobs,
    chosen_source,
    finalist_folder,
    further_teachers,
    generator_name,
    lesson_of,
    load_ensemble,
    load_student,
    load_teacher,
    new_classifier,
    new_generator,
    student_source,
)
from knowledge_recycling.data.images import ImageSet, to_unit
from knowledge_recycling.evaluation.calibration import fit_temperature, softmax
from knowledge_recycling.evaluation.quality import measure_quality, num_compared
from knowledge_recycling.evaluation.utility import measure_fidelity, measure_gap, measure_utility
from knowledge_recycling.fanout import in_order, workers_for
from knowledge_recycling.models.build import build_objective
from knowledge_recycling.models.contracts import Classifier
from knowledge_recycling.randomness import named_seed, numpy_rng
from knowledge_recycling.recycling.acceleration import NAME as ACCELERATION
from knowledge_recycling.recycling.distillation import (
    Lesson,
    distil,
    trained_student,
    with_knobs,
)
from knowledge_recycling.recycling.scoring import loss_attack
from knowledge_recycling.recycling.synthesis import Source, class_prior, draw_set, open_set
from knowledge_recycling.rundir import SCRATCH, perform
from knowledge_recycling.storage import read_weights, write_arrays, write_json
from knowledge_recycling.together import together
from knowledge_recycling.training.batches import Shuffled, class_weights
from knowledge_recycling.training.classifier import WEIGHTS, Fit, fit_classifier, hard_loss
from knowledge_recycling.training.generator import SaveCandidates, augmented
from knowledge_recycling.training.loop import METRICS, GiveUp, Plan, never, train
from knowledge_recycling.training.validation import kept, predict_logits


def train_teacher(run: Run, folder: Path, early: float | None = None) -> None:
    """Trains the teacher, keeps its best snapshot and the temperature that calibrates it.

    And, apart from it, the snapshot at the share `early` of its training.
    """
    config, members = run.recipe.teacher.training, run.members
    balance = config.balance
    fit = Fit(
        name="teacher",
        config=config,
        loss=hard_loss(config.label_smoothing),
        batches=Shuffled(
            members,
            config.batch_size,
            seed=run.context.seed,
            name="teacher",
            balance=balance,
            device=run.context.fabric.device,
        ),
        val=run.val,
        class_weight=class_weights(members) if balance == "loss" else None,
        early=early,
    )
    classifier = new_classifier(run, "teacher")
    records = fit_classifier(classifier, fit, folder, run.context)
    read_weights(folder / WEIGHTS, classifier)
    logits = predict_logits(classifier, run.val, run.context.fabric)
    best = records[kept(records, len(run.val))]
    temperature = fit_temperature(logits, run.val.labels)
    write_json(folder / TEACHER, {"temperature": temperature, "best": best})


def train_ensemble(run: Run, folder: Path) -> None:
    """Trains the further teachers, each a part of the stage."""
    parts = further_teachers(run, folder)
    workers = workers_for(run.recipe.compute, len(parts), run.context.fabric.device, short=True)
    in_order(partial(train_further, run.for_workers(workers)), parts, workers, folder)


def train_further(run: Run, folder: Path) -> None:
    """Trains a further teacher: like the first, but for its randomness."""
    seed = named_seed(run.context.seed, ENSEMBLE, folder.name)
    alike = replace(run, context=replace(run.context, seed=seed))
    perform(folder, {"part": folder.name}, partial(together, train_teacher, alike))


def for_each_generator(run: Run, folder: Path, work: Callable[[Run, Path], None]) -> None:
    """Does a stage's work for each generator; that of a further one is a part of the stage.

    Parts come first: the stage that goes on then skips what is done, and the rest is its own.
    """
    for each in run.of_further:
        perform(folder / each.part, {"generator": each.further}, partial(work, each))
    work(run, folder)


def train_generator(run: Run, folder: Path) -> None:
    """Trains each generator and saves its candidates along the way."""
    for_each_generator(run, folder, partial(together, train_one))


def train_one(run: Run, folder: Path) -> None:
    """Trains one generator."""
    config, members = run.recipe.generator_training, run.members
    context, name = run.context, generator_name(run)
    generator = new_generator(run)
    objective = build_objective(
        generator, run.generator, fabric=context.fabric, seed=context.seed, name=name
    )
    batches = Shuffled(
        members,
        config.batch_size,
        seed=context.seed,
        name=name,
        balance=config.balance,
        device=context.fabric.device,
    )
    plan = Plan(
        seed=context.seed,
        name=name,
        images_seen=config.images_seen,
        batch_size=config.batch_size,
        snapshots=config.candidate_shares,
    )
    with context.reporter.task(name, config.images_seen) as advance:
        train(
            objective,
            augmented(batches, config.augment, context.seed, name),
            plan,
            SaveCandidates(folder),
            folder=folder,
            advance=advance,
            log=partial(context.log, folder),
        )


def distil_student(run: Run, folder: Path) -> None:
    """GKD: trains the student on the chosen candidates' images, with the chosen knobs.

    If it was trained while choosing, as a finalist, it is taken from there.
    """
    finalist = finalist_folder(run, chosen(run.folder / "tuning/trials.json")["trial"])
    if finalist.exists():
        for pattern in (WEIGHTS, METRICS, STUDENT, f"{ACCELERATION}*"):
            for path in finalist.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        return
    teachers = load_ensemble(run)
    config = with_knobs(run.recipe.student, chosen_knobs(run))
    lesson = lesson_of(run, teachers, chosen_source(run, teachers), config=config, name="student")
    learn(lesson, run, folder)


def learn(lesson: Lesson, run: Run, folder: Path, give_up: GiveUp = never) -> None:
    """Trains a student and writes what it reached and what its images took."""
    records = distil(lesson, folder, run.context, give_up)
    about: dict[str, Any] = {
        "best": records[kept(records, len(run.val))],
        "sampling": asdict(lesson.source.tally),
    }
    members = attacked_members(run)
    if members is not None:
        student = trained_student(lesson, folder, run.context)
        about["leakage"] = loss_attack(student, members, run.val, run.context)
    write_json(folder / STUDENT, about)


def attacked_members(run: Run) -> ImageSet | None:
    """Returns the members if choices are made under a limit on leakage."""
    return None if run.recipe.tuning.leakage_limit is None else run.members


def evaluate(run: Run, folder: Path) -> None:
    """Opens the test split, once: utility of the classifiers, gap, fidelity, and quality."""
    teacher, teachers = load_teacher(run), load_ensemble(run)
    classifiers: dict[str, nn.Module] = {"teacher": teacher, "student": load_student(run)}
    if run.recipe.further_teachers:
        classifiers[ENSEMBLE] = teachers
    splits = {"test": run.splits.test, "val": run.val}
    chances = {
        who: {split: probabilities(run, classifier, images) for split, images in splits.items()}
        for who, classifier in classifiers.items()
    }
    labelling = ENSEMBLE if ENSEMBLE in classifiers else "teacher"
    resamples = run.recipe.evaluation.resamples

    def random(name: str) -> np.random.Generator:
        return numpy_rng(run.context.seed, "evaluation", name)

    utility = {
        who: {
            split: asdict(measure_utility(each, splits[split].labels, random(who), resamples))
            for split, each in by_split.items()
        }
        for who, by_split in chances.items()
    }
    on_test = {who: by_split["test"] for who, by_split in chances.items()}
    gap = measure_gap(
        on_test["teacher"], on_test["student"], splits["test"].labels, random("gap"), resamples
    )
    fidelity = {
        split: asdict(measure_fidelity(chances[labelling][split], chances["student"][split]))
        for split in splits
    }
    measured = {**utility, "gap": asdict(gap), "fidelity": fidelity}
    write_json(folder / "evaluation.json", measured)
    write_arrays(
        folder / "predictions.npz",
        {f"{split}_labels": images.labels for split, images in splits.items()}
        | {f"{split}_{who}": chances[who][split] for who in chances for split in splits},
    )
    look_at_images(run, teacher.classifier, student_source(run, teachers), folder)


def look_at_images(run: Run, classifier: Classifier, source: Source, folder: Path) -> None:
    """Measures the synthetic images' quality and keeps a grid of real and synthetic ones."""
    config = run.recipe.evaluation
    # with the real shares of the classes, so that the distances speak of the images alone
    source = replace(source, prior=class_prior(run.members, "real"))
    size = config.num_drawn(run.members.num_classes)
    path = folder / SCRATCH / "quality.npy"
    draw_set(source, size, path, ("evaluation", "quality"), run.context)
    synthetic = open_set(path, run.members.class_names)
    compared = num_compared(len(run.members), len(synthetic))
    quality = measure_quality(
        features(run, classifier, run.members.evenly(compared)),
        features(run, classifier, synthetic.evenly(compared)),
    )
    write_json(folder / "quality.json", asdict(quality))
    write_arrays(
        folder / "samples.npz",
        {
            "real": grid(run.members, config.grid_images),
            "synthetic": grid(synthetic, config.grid_images),
        },
    )


def grid(image_set: ImageSet, per_class: int) -> npt.NDArray[np.uint8]:
    """Returns the first images of each class, [K,per_class,C,H,W]; missing ones are mid grey."""
    images = np.full((image_set.num_classes, per_class, *image_set.shape), 128, dtype=np.uint8)
    for k in range(image_set.num_classes):
        rows = np.flatnonzero(image_set.labels == k)[:per_class]
        images[k, : len(rows)] = image_set.images[rows]
    return images


def probabilities(run: Run, classifier: nn.Module, image_set: ImageSet) -> npt.NDArray[np.float64]:
    """Returns the class probabilities [N,K] of a set."""
    return softmax(predict_logits(classifier, image_set, run.context.fabric))


@torch.inference_mode()
def features(run: Run, classifier: Classifier, image_set: ImageSet) -> npt.NDArray[np.float64]:
    """Returns the classifier's pooled features [N,D] of a set."""
    device = run.context.fabric.device
    parts = [
        classifier.features(to_unit(image_set.images[i : i + 512]).to(device)).double().cpu()
        for i in range(0, len(image_set), 512)
    ]
    return np.asarray(torch.cat(parts))
