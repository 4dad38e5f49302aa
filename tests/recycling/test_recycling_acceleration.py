"""Distilling a sampler before a student learns: what is left, what is taken, what goes on.

The generator is a small flow with random weights, so that its path from noise bends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from knowledge_recycling import interruption
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.interruption import Interrupted
from knowledge_recycling.models.build import frozen
from knowledge_recycling.models.classifiers import resnet
from knowledge_recycling.models.generators import flow
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.recycling import acceleration, distillation
from knowledge_recycling.recycling.acceleration import (
    accelerated,
    accelerations,
    distance,
    num_images,
    with_accelerated,
)
from knowledge_recycling.recycling.distillation import (
    Ensemble,
    Lesson,
    StudentConfig,
    Teacher,
    distil,
)
from knowledge_recycling.recycling.scoring import SelectionConfig, cheap
from knowledge_recycling.recycling.synthesis import Source, SynthesisConfig, mixed
from knowledge_recycling.training.classifier import StudentTraining

SHAPE = (1, 8, 8)


def bent_flow(seed: int = 0) -> flow.Generator:
    """Returns a flow whose last layer, zero at first, has random weights."""
    torch.manual_seed(seed)
    generator = flow.Generator(flow.Config(width=8, patch=1), SHAPE, 2)
    for parameter in generator.network.leave.parameters():
        nn.init.normal_(parameter, std=0.2)
    return frozen(generator)


def source(generator: nn.Module | None = None, knobs: Knobs | None = None) -> Source:
    made = bent_flow() if generator is None else generator
    shares = np.array([0.25, 0.75])
    return Source(made, knobs or {}, ("a", "b"), shares, None, nn.Identity())


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "LEAST_IMAGES", 256)


@pytest.fixture
def any_distance(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    monkeypatch.setattr(acceleration, "FARTHEST", 100.0)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_longer_lessons_have_longer_distillations() -> None:
    assert num_images(1) == acceleration.LEAST_IMAGES
    assert num_images(8 * acceleration.LEAST_IMAGES + 80) == acceleration.LEAST_IMAGES + 10


@pytest.mark.usefixtures("any_distance")
def test_images_come_in_few_evaluations_from_then_on(context: Context, tmp_path: Path) -> None:
    before = source(knobs={"latent_std": 1.1, "guidance": 1.5})
    after = accelerated(before, 2, 100, tmp_path, context)
    (about,) = accelerations(tmp_path)
    assert (about.evaluations_before, about.evaluations) == (14, 2)
    assert about.images_seen == 256
    assert about.used
    assert after.knobs == {"latent_std": 1.1, "guidance": 1.0, "steps": 4, "distilled": 2}
    assert acceleration.evaluations_of(after.generator, after.knobs) == 2
    assert after.tally is before.tally
    assert about.distance == pytest.approx(distance(before, after, context))
    assert not any(p.requires_grad for p in after.generator.parameters())
    assert same_weights(before.generator, bent_flow()), "the generator itself stays as it was"


@pytest.mark.usefixtures("short")
def test_longer_distillation_comes_nearer_than_euler_steps(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source()
    euler = distance(before, replace(before, knobs={"distilled": 1}), context)
    found = []
    for images in (64, 4096):
        monkeypatch.setattr(acceleration, "LEAST_IMAGES", images)
        accelerated(before, 1, 0, tmp_path / str(images), context)
        found.append(accelerations(tmp_path / str(images))[0].distance or 0.0)
    assert found[1] < 0.5 * found[0]
    assert found[1] < 0.5 * euler


@pytest.mark.usefixtures("any_distance")
def test_a_distilled_generator_is_taken_from_where_it_was_left(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = accelerated(source(), 1, 0, tmp_path, context)
    monkeypatch.setattr(acceleration, "distil_sampler", None)  # a call would fail
    again = accelerated(source(), 1, 0, tmp_path, context)
    found = with_accelerated(source(), tmp_path, context)
    for each in (again, found):
        assert each.knobs == made.knobs
        assert same_weights(each.generator, made.generator)


@pytest.mark.usefixtures("any_distance")
def test_an_interrupted_distillation_goes_on_bit_for_bit(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = accelerated(source(), 1, 0, tmp_path / "whole", context)
    answers = iter([False, True])
    monkeypatch.setattr(interruption, "requested", lambda: next(answers, False))
    with pytest.raises(Interrupted):
        accelerated(source(), 1, 0, tmp_path / "parts", context)
    assert with_accelerated(source(), tmp_path / "parts", context).knobs == {}
    parts = accelerated(source(), 1, 0, tmp_path / "parts", context)
    assert same_weights(whole.generator, parts.generator)


class Painter(nn.Module):
    """Draws in one pass, like a GAN."""

    def sample(self, labels: Tensor, seeds: Tensor, knobs: Knobs) -> Tensor:
        return torch.zeros(len(labels), *SHAPE)


@pytest.mark.parametrize(
    ("generator", "knobs", "evaluations"),
    [(Painter(), {}, 1), (None, {"steps": 1}, 1), (None, {}, 7), (None, {}, 0)],
)
def test_a_generator_that_needs_no_more_stays_as_it_is(
    context: Context, tmp_path: Path, generator: nn.Module | None, knobs: Knobs, evaluations: int
) -> None:
    before = source(generator, knobs)
    assert accelerated(before, evaluations, 10**6, tmp_path, context) == before
    assert with_accelerated(before, tmp_path, context) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("short")
def test_a_sampler_that_is_too_far_is_told_of_and_not_used(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceleration, "FARTHEST", 1e-6)
    before = source()
    assert accelerated(before, 1, 0, tmp_path, context) == before
    (about,) = accelerations(tmp_path)
    assert not about.used
    assert (about.distance or 0.0) > 1e-6


@pytest.mark.usefixtures("any_distance")
def test_a_distance_that_is_no_number_is_not_used(context: Context, tmp_path: Path) -> None:
    broken = bent_flow()
    with torch.no_grad():
        next(broken.network.leave.parameters()).fill_(torch.nan)
    before = source(broken)
    assert accelerated(before, 1, 0, tmp_path, context) == before
    assert accelerations(tmp_path)[0].distance is None


@pytest.mark.usefixtures("any_distance")
def test_each_of_several_generators_is_distilled(context: Context, tmp_path: Path) -> None:
    both = mixed([source(bent_flow(0)), source(Painter()), source(bent_flow(1))])
    after = accelerated(both, 1, 0, tmp_path, context)
    weights = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert [path.name for path in sorted(tmp_path.glob("*.json"))] == [
        "acceleration-2.json",
        "acceleration.json",
    ]
    assert len(weights) == 2
    assert [each.knobs.get("distilled") for each in (after, *after.further)] == [1, None, 1]
    assert not same_weights(after.generator, after.further[1].generator)


def test_noise_has_the_labels_of_the_synthetic_set(context: Context) -> None:
    batches = acceleration.noise_of(source(), 64, context)
    noise, labels = (torch.cat(each) for each in zip(*map(batches, range(64)), strict=True))
    assert labels.double().mean() == pytest.approx(0.75, abs=0.03)  # 4 standard errors
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert noise.std() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(batches(3)[0], batches(3)[0])
    assert not torch.equal(batches(3)[0], batches(4)[0])


class OneHot(nn.Module):
    """A teacher sure of the first class."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).repeat(len(images), 1)


def lesson(evaluations: int, val: ImageSet) -> Lesson:
    config = StudentConfig(
        classifier=resnet.Config(width=8, blocks=1),
        training=StudentTraining(images_seen=96, batch_size=8, augment=(), snapshots=1),
        synthesis=SynthesisConfig(period=2, evaluations=evaluations),
    )
    shares = np.array([0.5, 0.5])
    teacher = Teacher(OneHot(), 1.0)
    return Lesson(
        config, source(), Ensemble([teacher]), shares, num_train=24, val=val, name="student"
    )


@pytest.mark.usefixtures("any_distance")
def test_a_student_learns_from_the_distilled_generator(
    context: Context,
    make_set: Callable[..., ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    drawn: list[Source] = []

    def spy(source: Source, evaluations: int, num_drawn: int, *rest: Any) -> Source:
        asked.append((evaluations, num_drawn))
        drawn.append(accelerated(source, evaluations, num_drawn, *rest))
        return drawn[-1]

    monkeypatch.setattr(distillation, "accelerated", spy)
    taught = lesson(3, make_set(20))
    distil(taught, tmp_path / "student", context)
    assert asked == [(3, 48)]  # four epochs of 24 images, a new set every second
    assert drawn[0].knobs["distilled"] == 3
    assert taught.source.tally.sampled == 48
    found = with_accelerated(source(), tmp_path / "student", context)
    assert same_weights(found.generator, drawn[0].generator)


def test_cheap_students_learn_from_the_generator_as_it_is() -> None:
    full = StudentConfig(synthesis=SynthesisConfig(period=1, evaluations=3))
    full = full.model_copy(update={"training": StudentTraining(images_seen=100)})
    assert cheap(full, SelectionConfig(), {}).synthesis.evaluations == 0
