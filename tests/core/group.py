"""Short trainings of every kind of objective, done alike by one process and by several."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from knowledge_recycling import interruption, ranks
from knowledge_recycling.compute import ComputeConfig
from knowledge_recycling.config import kind_module
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.models.build import (
    build_classifier,
    build_generator,
    build_objective,
    frozen,
)
from knowledge_recycling.models.classifiers import resnet
from knowledge_recycling.progress import Reporter, SilentReporter
from knowledge_recycling.recycling.distillation import (
    Ensemble,
    Lesson,
    StudentConfig,
    Teacher,
    distil,
)
from knowledge_recycling.recycling.synthesis import Source, SynthesisConfig
from knowledge_recycling.storage import write_json
from knowledge_recycling.training.batches import Shuffled
from knowledge_recycling.training.classifier import (
    ClassifierObjective,
    ClassifierTraining,
    StudentTraining,
    hard_loss,
)
from knowledge_recycling.training.loop import Plan, Record, train

CPU = ComputeConfig(accelerator="cpu", precision="32-true", threads=1)
SHAPE, CLASSES = (1, 8, 8), 2
STEPS, BATCH = 6, 8
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet": {"width": 8, "blocks": 1},
    "timm": {"name": "test_resnet", "min_side": 16},
    "flow": {"width": 8, "patch": 1, "warmup_steps": 5},
    "biggan": {
        "width": 8,
        "depth": 1,
        "latent_size": 8,
        "embedding_size": 8,
        "discriminator_steps": 2,
        "learning_rate": 1e-3,
        "discriminator_learning_rate": 1e-3,
        "augment": ("shift", "cutout", "intensity"),
    },
    "r3gan": {
        "width": 8,
        "depth": 1,
        "expansion": 1.0,
        "group_size": 0,
        "latent_size": 8,
        "embedding_size": 8,
        "learning_rate": 1e-3,
        "augment": ("shift", "cutout", "intensity"),
    },
}
GENERATORS = ("flow", "biggan", "r3gan")


def images() -> ImageSet:
    """Noise whose left column carries the label."""
    random = np.random.default_rng(0)
    labels = np.arange(40, dtype=np.int64) % CLASSES
    pixels = random.integers(0, 256, (len(labels), *SHAPE), dtype=np.uint8)
    pixels[..., 0] = (labels * 255)[:, None, None]
    return ImageSet(pixels, labels, ("dark", "bright"))


def network(kind: str, fabric: Fabric, seed: int = 0) -> Any:
    generator = kind in GENERATORS
    home = "models.generators" if generator else "models.classifiers"
    config = kind_module(home, kind).Config(**NETWORKS[kind])
    build = build_generator if generator else build_classifier
    return build(config, SHAPE, CLASSES, fabric=fabric, seed=seed, name=kind), config


def objective(kind: str, fabric: Fabric) -> Any:
    model, config = network(kind, fabric)
    if kind in GENERATORS:
        return build_objective(model, config, fabric=fabric, seed=0, name=kind)
    training = ClassifierTraining(batch_size=BATCH, augment=("shift", "cutout", "noise"))
    weight = torch.tensor([0.5, 1.5])
    return ClassifierObjective(
        model,
        training,
        hard_loss(),
        num_steps=STEPS,
        fabric=fabric,
        class_weight=weight,
    )


def answers(model: nn.Module, images_seen: int, earlier: Sequence[Record]) -> Record:
    """What the averaged model says or draws, as a record of numbers."""
    del images_seen, earlier
    model.eval()
    with torch.no_grad():
        if hasattr(model, "sample"):
            said: Tensor = model.sample(torch.arange(4) % CLASSES, torch.arange(4), {})
        else:
            said = model(torch.from_numpy(images().images[:4]).float() / 127.5 - 1)
    return {f"answer {i}": float(value) for i, value in enumerate(said.flatten()[:200])}


def learn(kind: str, folder: Path, fabric: Fabric, stop_at: int | None = None) -> None:
    """Trains for some steps, each followed by a look; writes all numbers to `folder`."""
    batches = Shuffled(images(), BATCH, seed=0, name=kind)

    def stopping(step: int) -> tuple[Tensor, Tensor]:
        if step + 1 == stop_at and ranks.is_first():
            interruption.request()
        return batches(step)

    plan = Plan(
        seed=0,
        name=kind,
        images_seen=STEPS * BATCH,
        batch_size=BATCH,
        snapshots=[(i + 1) / STEPS for i in range(STEPS)],
    )
    train(objective(kind, fabric), stopping, plan, answers, folder=folder, advance=lambda _: None)


def learn_all(folder: Path, fabric: Fabric, reporter: Reporter) -> None:
    with reporter.task("everything", len(NETWORKS)) as advance:
        for number, kind in enumerate(NETWORKS):
            learn(kind, folder / kind, fabric)
            advance(number + 1)
    reporter.warn("that was all")
    distilled(folder / "student", fabric)


def learn_flow(folder: Path, stop_at: int | None, fabric: Fabric, reporter: Reporter) -> None:
    del reporter
    learn("flow", folder, fabric, stop_at)


def distilled(folder: Path, fabric: Fabric) -> None:
    """GKD by two teachers with a synthetic set of an odd size that is drawn anew."""
    generator, _ = network("r3gan", fabric)
    teacher = Teacher(network("resnet", fabric)[0], 1.0)
    source = Source(
        generator=frozen(generator),
        knobs={},
        class_names=("dark", "bright"),
        prior=np.array([0.5, 0.5]),
        filter=None,
        teacher=teacher,
    )
    config = StudentConfig(
        classifier=resnet.Config(**NETWORKS["resnet"]),
        training=StudentTraining(
            images_seen=STEPS * BATCH, batch_size=BATCH, snapshots=3, augment=("shift", "noise")
        ),
        synthesis=SynthesisConfig(period=1),
    )
    lesson = Lesson(
        config=config,
        source=source,
        teachers=Ensemble([teacher, Teacher(network("resnet", fabric, seed=1)[0], 2.0)]),
        teacher_prior=np.array([0.5, 0.5]),
        num_train=27,
        val=images(),
        name="student",
    )
    distil(lesson, folder, Context(fabric, 0, SilentReporter()))
    write_json(folder / "told.json", lesson.source.tally.sampled)


def fall(how: str, fabric: Fabric, reporter: Reporter) -> None:
    """The second process does not live to the end."""
    del fabric, reporter
    if not ranks.is_first():
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ZeroDivisionError("of the second process")
    ranks.barrier()
