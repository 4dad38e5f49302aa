"""How long a run takes here: a few calls of each part of its work are timed, the rest is counted.

A part's speed hardly depends on how far its training is, so seconds per image times images is the
time of a stage. Not counted: choosing's full students, which hang on what cheap ones find, images
drawn again by a filter, the distillation of a sampler, an audit's DP-SGD teachers, and seconds that
no training takes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning_fabric import Fabric
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from knowledge_recycling import pipeline
from knowledge_recycling.artefacts import (
    ENSEMBLE,
    Run,
    generator_name,
    new_classifier,
    new_generator,
)
from knowledge_recycling.auditing import pool_of
from knowledge_recycling.data.images import Splits
from knowledge_recycling.models.build import build_objective, frozen
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.randomness import rng
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.recycling.distillation import (
    Ensemble,
    StudentConfig,
    Teacher,
    distillation_loss,
    with_knobs,
)
from knowledge_recycling.recycling.scoring import cheap
from knowledge_recycling.recycling.synthesis import CHUNK
from knowledge_recycling.shadows import shadow_run
from knowledge_recycling.training.batches import Shuffled
from knowledge_recycling.training.classifier import (
    ClassifierObjective,
    ClassifierTraining,
    hard_loss,
)
from knowledge_recycling.training.loop import Objective

TEACHING, LABELLING = "teacher training", "teacher labelling"
GKD = "student training with labelling (GKD)"

TRAINING, SAMPLING = " training", " sampling"
"""Ends of the names of a generator's parts."""

NOT_COUNTED = "A setting that cheap students prefer to a default costs up to one more student."
NO_AUDIT = f"Without an audit; with one: --set audit.shadows={pipeline.DEFAULT_SHADOWS}"
AUDIT = "The audit is one process's: workers on other cores or machines share its shadows."

Work = Mapping[str, int]
"""Images by part."""


@dataclass(frozen=True)
class Part:
    """A piece of work of a run."""

    name: str
    images: int
    """Of one call."""
    call: Callable[[], object]


@dataclass(frozen=True)
class StageTime:
    """What a stage takes."""

    name: str
    learnt: int
    """Images its trainings see, repeated ones too."""
    drawn: int
    """Images its generators draw."""
    seconds: float


def stage_times(recipe: Recipe, splits: Splits) -> tuple[list[StageTime], Run]:
    """Returns the time of each stage, by some seconds of each part's work, and the run asked.

    Raises:
        RecipeError: The recipe is wrong.
        DataError: The images are.
    """
    with prepared(recipe, splits) as run:
        fabric = run.context.fabric
        parts = [*classifier_parts(run), *all_generator_parts(run)]
        seconds = {each.name: seconds_of(each.call, wall_clock(fabric)) for each in parts}
    per_image = {each.name: seconds[each.name] / each.images for each in parts}
    return [time_of(name, work, per_image) for name, work in work_of(run).items()], run


def time_of(stage: str, work: Work, seconds_per_image: Mapping[str, float]) -> StageTime:
    """Returns the time of a stage from its images by part and the seconds that one takes."""
    return StageTime(
        stage,
        learnt=sum(n for part, n in work.items() if TRAINING in part),
        drawn=sum(n for part, n in work.items() if SAMPLING in part),
        seconds=sum(n * seconds_per_image[part] for part, n in work.items()),
    )


def render(times: Sequence[StageTime], run: Run) -> RenderableType:
    """Returns the times as a table and a sentence for a `rich` console."""
    fabric, threads = run.context.fabric, torch.get_num_threads()
    on_cpu = f"{threads} thread{'s' * (threads > 1)}"
    device = on_cpu if fabric.device.type == "cpu" else fabric.device.type
    title = f"about how long with {device}, {fabric._precision.precision}"
    table = Table("stage", title=title, title_justify="left")
    for column in ("images learnt", "images drawn", "minutes"):
        table.add_column(column, justify="right")
    for each in times:
        counts = [f"{n:,}" if n else "" for n in (each.learnt, each.drawn)]
        table.add_row(each.name, *counts, f"{each.seconds / 60:.1f}")
    table.add_section()
    table.add_row("all", "", "", f"{sum(each.seconds for each in times) / 60:.1f}")
    audit = AUDIT if run.recipe.audit.shadows else NO_AUDIT
    return Group(table, Text(f"{NOT_COUNTED}\n{audit}"))


def work_of(run: Run) -> dict[str, Work]:
    """Returns the images by part of each stage; of tuning those of trials never given up."""
    works = training_work(run)
    drawn = run.recipe.evaluation.num_drawn(run.members.num_classes)
    works["evaluation"] = drawing(names_of(run), drawn)
    shadows = run.recipe.audit.shadows
    if shadows:
        works["audit"] = {part: shadows * n for part, n in shadow_work(run).items()}
    return works


def shadow_work(run: Run) -> Work:
    """Returns the images by part of one shadow of the audit."""
    planted, members = pool_of(run)
    half = planted.pool.subset(members[0].nonzero()[0])
    shadow = shadow_run(run, half, 0, run.folder)
    works, names, num_val = training_work(shadow), names_of(shadow), len(shadow.val)
    audit, yardsticks = shadow.recipe.audit, shadow.recipe.audit.yardsticks
    each = [works["teacher"]]
    targets = 1 + bool(yardsticks.early_stop) + len(yardsticks.dp.epsilons)
    if audit.mode == "pipeline":
        chosen = ("candidates", "tuning") if audit.selection == "repeated" else ()
        each += [works[name] for name in (ENSEMBLE, "generator", *chosen, "student")]
        for size in (*yardsticks.soft_set_sizes, *yardsticks.hard_set_sizes):
            student = with_knobs(shadow.recipe.student, {"set_size": size, "period": 0})
            each.append(learning(student, names, len(half), num_val))
            targets += 1
        each.append(drawing(names, len(half)))  # the set that is attacked
        targets += 1
    queries = {LABELLING: targets * audit.queries * (len(planted.pool) + num_val)}
    return added(*each, queries)


def names_of(run: Run) -> list[str]:
    """Returns the names of the run's generators."""
    return [generator_name(each) for each in run.each_generator]


def added(*works: Work) -> Work:
    """Returns the images by part of several pieces of work together."""
    total: Counter[str] = Counter()
    for each in works:
        total.update(each)
    return total


def training_work(run: Run) -> dict[str, Work]:
    """Returns the images by part of each stage that trains."""
    recipe, names, num_train, num_val = run.recipe, names_of(run), len(run.members), len(run.val)
    teacher, generator = recipe.teacher.training, recipe.generator_training
    cheap_student = cheap(recipe.student, recipe.selection, {})
    asked = (learning(cheap_student, [name], num_train, num_val) for name in names)
    once = added(*asked)  # a question to each generator

    def scored(questions: int) -> Work:
        return {part: questions * images for part, images in once.items()}

    one = {TEACHING: teacher.images_seen, LABELLING: validated(teacher, num_val)}
    return {
        "teacher": one,
        ENSEMBLE: added(*[one] * recipe.further_teachers),
        "generator": {f"{name}{TRAINING}": generator.images_seen for name in names},
        "candidates": scored(generator.candidates),
        "tuning": scored(max(0, recipe.tuning.trials - 1)),
        "student": learning(recipe.student, names, num_train, num_val),
    }


def learning(
    config: StudentConfig, generators: Sequence[str], num_train: int, num_val: int
) -> Work:
    """Returns the images by part of a student's training."""
    return {
        GKD: config.training.images_seen,
        LABELLING: validated(config.training, num_val),
        **drawing(generators, config.num_drawn(num_train)),
    }


def drawing(generators: Sequence[str], size: int) -> Work:
    """Returns the images by part of a synthetic set, drawn in equal shares."""
    return {f"{name}{SAMPLING}": round(size / len(generators)) for name in generators}


def validated(training: ClassifierTraining, num_val: int) -> int:
    """Returns the images that snapshots are validated on: those of the split and corrupted ones."""
    return 2 * training.snapshots * num_val


def classifier_parts(run: Run) -> Iterator[Part]:
    """Yields the pieces of work of teacher and student, with the recipe's derived settings."""
    fabric, members, recipe = run.context.fabric, run.members, run.recipe
    training = recipe.teacher.training
    networks = [new_classifier(run, who) for who in ("teacher", "teacher", "student")]
    teacher = Teacher(networks[0], 1.0)
    teachers = Ensemble([teacher] * (1 + recipe.further_teachers))
    batches = Shuffled(members, training.batch_size, seed=0, name="t", device=fabric.device)
    plain = ClassifierObjective(
        networks[1],
        training,
        hard_loss(),
        num_steps=10**6,
        fabric=fabric,
    )
    gkd = ClassifierObjective(
        networks[2],
        recipe.student.training,
        distillation_loss(teachers, recipe.student, torch.zeros(members.num_classes)),
        num_steps=10**6,
        fabric=fabric,
    )
    images, labels = batches(0)

    def label() -> Tensor:
        with torch.no_grad(), fabric.autocast():
            logits: Tensor = teacher(images)
        return logits

    yield Part(TEACHING, len(labels), trained(plain, batches))
    yield Part(LABELLING, len(labels), label)
    yield Part(GKD, len(labels), trained(gkd, batches))


def all_generator_parts(run: Run) -> Iterator[Part]:
    """Yields training and sampling of each generator."""
    for each in run.each_generator:
        yield from generator_parts(each, generator_name(each))


def generator_parts(
    run: Run, name: str, knobs: Mapping[str, float] | None = None
) -> Iterator[Part]:
    """Yields training and sampling of the run's generator."""
    fabric, members = run.context.fabric, run.members
    generator = new_generator(run)
    objective = build_objective(generator, run.generator, fabric=fabric, seed=0, name="g")
    size = run.recipe.generator_training.batch_size
    batches = Shuffled(members, size, seed=0, name="g", device=fabric.device)
    yield Part(f"{name}{TRAINING}", size, trained(objective, batches))
    sampler = run.context.compiled_sampler(frozen(objective.averaged()))  # a copy is not compiled
    labels = torch.arange(CHUNK, device=fabric.device) % members.num_classes

    def sample() -> Tensor:
        with torch.no_grad(), fabric.autocast():
            images: Tensor = sampler.sample(labels, torch.arange(CHUNK), knobs or {})
        return images

    yield Part(f"{name}{SAMPLING}", CHUNK, sample)


def trained(objective: Objective, batches: Shuffled) -> Callable[[], object]:
    """Returns the call that takes the next step of a training."""
    steps = count()

    def step() -> object:
        number = next(steps)
        return objective.step(*batches(number), rng(0, "timing", number))

    return step


def wall_clock(fabric: Fabric) -> Callable[[], float]:
    """Returns the clock that waits until all that was asked of the device is done."""

    def now() -> float:
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return now


def seconds_of(call: Callable[[], object], clock: Callable[[], float], least: float = 1.0) -> float:
    """Returns the seconds of a call, the mean over as many as fill `least` seconds.

    The first is left out: it makes ready what later ones find.
    """
    call()
    calls, start = 0, clock()
    while (spent := clock() - start) < least or calls == 0:
        call()
        calls += 1
    return spent / calls


@contextmanager
def prepared(recipe: Recipe, splits: Splits) -> Iterator[Run]:
    """Yields the run of a recipe, ready to train, in a folder that goes with it."""
    with TemporaryDirectory() as folder:
        yield pipeline.prepare(recipe, splits, Path(folder), SilentReporter())
