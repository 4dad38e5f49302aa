"""How fast are shadows trained: one by one, stacked into one network, or in a process each?

    python -m benchmarks.shadow_training retinamnist.npz --out runs/shadow_training.json

Every way trains the recipe's teacher on halves of the set: same network, batches, augmentation,
optimiser and average. All take turns in the same run, so that their ratios compare; images per
second are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from knowledge_recycling.compute import ComputeConfig, descend, make_fabric
from knowledge_recycling.config import Facts
from knowledge_recycling.data.augment import augment
from knowledge_recycling.data.images import ImageSet, to_unit
from knowledge_recycling.fanout import Workers, in_order, num_cores
from knowledge_recycling.models.build import build_classifier
from knowledge_recycling.models.classifiers import resnet
from knowledge_recycling.privacy.many import Stack
from knowledge_recycling.randomness import numpy_rng, rng
from knowledge_recycling.training.batches import Shuffled
from knowledge_recycling.training.classifier import (
    ClassifierObjective,
    ClassifierTraining,
    hard_loss,
)

STACKED = 8


@dataclass(frozen=True)
class Job:
    """Some steps of one shadow's training."""

    images: ImageSet
    """Its members."""
    training: ClassifierTraining
    number: int
    steps: int
    threads: int


@dataclass(frozen=True)
class Lap:
    """When a job began and ended, and what it did."""

    start: float
    end: float
    images: int


def train_alone(job: Job) -> Lap:
    """Trains one shadow as the stage `teacher` does."""
    fabric = make_fabric(ComputeConfig(threads=job.threads))
    members, training = job.images, job.training
    classifier = build_classifier(
        resnet.Config(),
        members.shape,
        members.num_classes,
        fabric=fabric,
        seed=job.number,
        name="t",
    )
    objective = ClassifierObjective(
        classifier, training, hard_loss(), num_steps=10_000, fabric=fabric
    )
    batches = Shuffled(members, training.batch_size, seed=job.number, name="t")
    start = time.time()
    for step in range(job.steps):
        objective.step(*batches(step), rng(job.number, "t", step))
    return Lap(start, time.time(), job.steps * training.batch_size)


def train_stacked(job: Job) -> Lap:
    """Trains `STACKED` shadows as one network: every step is one step of all."""
    fabric = make_fabric(ComputeConfig(threads=job.threads))
    members, size = job.images, job.training.batch_size
    networks = [
        build_classifier(
            resnet.Config(), members.shape, members.num_classes, fabric=fabric, seed=s, name="t"
        )
        for s in range(STACKED)
    ]
    stack = Stack(networks)
    optimizer = torch.optim.SGD(stack.parameters.values(), 0.01, momentum=0.9, nesterov=True)
    start = time.time()
    for step in range(job.steps):
        rows = numpy_rng(0, step).integers(len(members), size=STACKED * size)
        images = augment(to_unit(members.images[rows]), job.training.augment, rng(0, "t", step))
        labels = torch.from_numpy(members.labels[rows])
        with fabric.autocast():
            logits = stack(images.unflatten(0, (STACKED, size)), train=True)
        descend(STACKED * functional.cross_entropy(logits.float().flatten(0, 1), labels), optimizer)
    return Lap(start, time.time(), job.steps * STACKED * size)


def rate(laps: list[Lap]) -> float:
    """Returns the images per second of laps that ran at the same time."""
    seconds = max(lap.end for lap in laps) - min(lap.start for lap in laps)
    return sum(lap.images for lap in laps) / seconds


def half(path: Path) -> tuple[ImageSet, ClassifierTraining]:
    """Returns half of a file's training images and the training that the recipe derives."""
    with np.load(path, allow_pickle=False) as file:
        images, labels = file["train_images"], file["train_labels"].astype(np.int64).ravel()
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    chosen = numpy_rng(0, "half").permutation(len(labels))[: len(labels) // 2]
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    members = ImageSet(np.ascontiguousarray(images[chosen]), labels[chosen], classes)
    facts = Facts(
        num_train=len(labels),
        num_val=0,
        shape=members.shape,
        num_classes=len(classes),
        smallest_class=1,
        symmetries=("hflip", "vflip"),
        on_gpu=False,
    )
    return members, ClassifierTraining().completed(facts)


def main() -> None:
    """Measures, prints the table in Markdown and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="npz in MedMNIST's form")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/shadow_training.json"))
    given = parser.parse_args()
    members, training = half(given.images)
    cores = num_cores()

    def job(number: int, threads: int, steps: int = given.steps) -> Job:
        return Job(members, training, number, steps, threads)

    def in_processes() -> list[Lap]:
        jobs = [job(each, 1) for each in range(cores)]
        return in_order(train_alone, jobs, Workers(cores, 1, "loky"), given.out.parent)

    ways: dict[str, Callable[[], list[Lap]]] = {
        f"one by one, {cores} threads": lambda: [train_alone(job(0, cores))],
        f"{STACKED} stacked, {cores} threads": lambda: [
            train_stacked(job(0, cores, max(2, given.steps // STACKED)))
        ],
        f"{cores} processes, 1 thread each": in_processes,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds + 1):  # the first warms up
        for name, way in ways.items():
            rates[name].append(rate(way()))
    medians = {name: statistics.median(each[1:]) for name, each in rates.items()}
    first = next(iter(medians.values()))
    print(f"batches of {training.batch_size}, {given.rounds} rounds of {given.steps} steps")
    print("| way | images per second | ratio |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.0f} | {value / first:.2f} |")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figures = {"images_per_second": medians, "rounds": rates, "cores": cores}
    given.out.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
