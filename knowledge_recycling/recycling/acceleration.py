"""Acceleration: before a student learns, its generator is distilled into one of few evaluations.

It pays where a student is to see many times more images than the distillation takes, and looks at
nothing real.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knowledge_recycling import ranks
from knowledge_recycling.context import Context
from knowledge_recycling.models.build import frozen
from knowledge_recycling.models.contracts import Generator
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.randomness import rng
from knowledge_recycling.recycling.synthesis import Source, draw
from knowledge_recycling.rundir import SCRATCH
from knowledge_recycling.storage import read_json, read_weights, write_json, write_weights
from knowledge_recycling.training.loop import Batches, Plan, Record, train

NAME = "acceleration"
"""Of what is left in a student's folder: weights and, in JSON, an `Accelerated`."""
BATCH_SIZE = 64
LEAST_IMAGES = 16_384
"""Of noise that a distillation sees, or `SHARE` of the images to be drawn, if that is more."""
SHARE = 1 / 8
PROBE_SIZE = 256
"""Images by which the samplers are compared."""
FARTHEST = 0.25
"""Distance from which on a distilled sampler is not used."""


@dataclass(frozen=True, kw_only=True)
class Accelerated:
    """What distilling a sampler has brought."""

    evaluations_before: int
    evaluations: int
    """Of the network, for an image."""
    images_seen: int
    """Of noise, by the distillation."""
    distance: float | None
    """From the images of the sampler before: root mean square, in standard deviations of those;
    `None`: not a number."""
    knobs: Knobs
    """With which the distilled generator is sampled."""

    @property
    def used(self) -> bool:
        """Whether students learn from it."""
        return self.distance is not None and self.distance < FARTHEST


def accelerated(
    source: Source, evaluations: int, num_drawn: int, folder: Path, context: Context
) -> Source:
    """Returns `source` with each of its generators distilled, unless it needs no more.

    Args:
        source: Generators and their knobs.
        evaluations: Wanted for an image; 0: the source stays as it is.
        num_drawn: Images to be drawn from the source.
        folder: Where distilled generators are left; one that is there is taken.
        context: Surroundings.

    Raises:
        Interrupted: A signal asked to stop; the same call goes on.
    """
    num_drawn //= len(source.each_generator)

    def distil(one: Source, name: str) -> Source:
        if not (folder / f"{name}.json").exists():
            if evaluations_of(one.generator, one.knobs) <= evaluations:
                return one
            distil_sampler(one, evaluations, num_images(num_drawn), folder / name, context)
        return _read(one, folder, name, context)

    return source if evaluations == 0 else _each(source, distil)


def with_accelerated(source: Source, folder: Path, context: Context) -> Source:
    """Returns `source` with the distilled generators that a student in `folder` learned from."""

    def find(one: Source, name: str) -> Source:
        found = (folder / f"{name}.json").exists()
        return _read(one, folder, name, context) if found else one

    return _each(source, find)


def accelerations(folder: Path) -> list[Accelerated]:
    """Returns what distilling has brought a student in `folder`, generator by generator."""
    return [Accelerated(**read_json(path)) for path in sorted(folder.glob(f"{NAME}*.json"))]


def num_images(num_drawn: int) -> int:
    """Returns the images of noise that a distillation sees."""
    return max(LEAST_IMAGES, round(SHARE * num_drawn))


def evaluations_of(generator: Generator, knobs: Knobs) -> int:
    """Returns how often a generator evaluates its network for an image."""
    count: Callable[[Knobs], int] | None = getattr(generator, "evaluations", None)
    return 1 if count is None else count(knobs)


def distil_sampler(
    source: Source, evaluations: int, images: int, leave: Path, context: Context
) -> None:
    """Distils the source's own generator; leaves its weights and an `Accelerated`."""
    batch_size = BATCH_SIZE - BATCH_SIZE % ranks.count()  # equal shares for several processes
    plan = Plan(
        seed=context.seed,
        name=NAME,
        images_seen=images,
        batch_size=batch_size,
        snapshots=(1.0,),
    )
    generator: Any = source.generator
    objective = generator.accelerated(source.knobs, evaluations, plan.num_steps, context.fabric)

    def look(fast: Any, images_seen: int, earlier: Sequence[Record]) -> Record:
        del earlier
        found = distance(source, replace(source, generator=fast, knobs=objective.knobs), context)
        about = Accelerated(
            evaluations_before=evaluations_of(generator, source.knobs),
            evaluations=evaluations,
            images_seen=images_seen,
            distance=found if math.isfinite(found) else None,
            knobs=objective.knobs,
        )
        write_weights(leave.with_suffix(".safetensors"), fast)
        write_json(leave.with_suffix(".json"), asdict(about))
        return {"distance": found}

    with context.reporter.task(NAME, images) as advance:
        train(
            objective,
            noise_of(source, batch_size, context),
            plan,
            look,
            folder=leave.parent / SCRATCH / leave.name,
            advance=advance,
        )


def noise_of(source: Source, batch_size: int, context: Context) -> Batches:
    """Returns batches of noise [N,C,H,W] and labels [N] in the shares of the synthetic set."""
    shares = torch.from_numpy(source.prior)
    device = context.fabric.device
    generator: Any = source.generator

    def draw_noise(step: int) -> tuple[Tensor, Tensor]:
        random = rng(context.seed, NAME, "noise", step)
        labels = torch.multinomial(shares, batch_size, replacement=True, generator=random)
        noise = torch.randn((batch_size, *generator.shape), generator=random)
        return noise.to(device), labels.to(device)

    return draw_noise


def distance(source: Source, other: Source, context: Context) -> float:
    """Returns how far the images of `other` are from those of `source`, of the same seeds.

    Root mean square over all pixels, in standard deviations of the pixels of `source`.
    """
    labels = torch.arange(PROBE_SIZE, device=context.fabric.device) % len(source.class_names)
    seeds = torch.arange(PROBE_SIZE)
    ours, theirs = (draw(each, labels, seeds, context) for each in (source, other))
    return float((theirs - ours).square().mean().sqrt() / ours.std())


def _each(source: Source, change: Callable[[Source, str], Source]) -> Source:
    """Returns the source with each of its generators changed; they are told apart by a name."""
    first = change(source, NAME)
    further = (change(each, f"{NAME}-{i}") for i, each in enumerate(source.further, start=1))
    return replace(first, further=tuple(further))


def _read(source: Source, folder: Path, name: str, context: Context) -> Source:
    about = Accelerated(**read_json(folder / f"{name}.json"))
    if not about.used:
        return source
    generator = context.compiled_sampler(copy.deepcopy(source.generator))  # a copy is not compiled
    read_weights(folder / f"{name}.safetensors", generator)
    return replace(source, generator=frozen(generator), knobs=about.knobs)
