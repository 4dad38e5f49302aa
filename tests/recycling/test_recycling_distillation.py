"""GKD against training on hard labels, and who gets to see which image.

A teacher whose soft labels are the labels themselves must give the same student bit for bit. Spies
on teacher and student show that both see the same augmented synthetic batch and nothing real.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling.config import Facts
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.models.classifiers import resnet
from knowledge_recycling.models.knobs import Knob
from knowledge_recycling.recycling import distillation
from knowledge_recycling.recycling.distillation import (
    KNOBS,
    NO_FILTER,
    Ensemble,
    Lesson,
    StudentConfig,
    Teacher,
    check_choices,
    distil,
    distillation_loss,
    student_knobs,
    with_knobs,
)
from knowledge_recycling.recycling.filtering import FilterConfig
from knowledge_recycling.recycling.synthesis import Source, SynthesisConfig
from knowledge_recycling.training.classifier import WEIGHTS, StudentTraining

SHAPE = (1, 8, 8)


class Painter(nn.Module):
    """Paints its label as grey value 64 or 191 into the left column, noise elsewhere."""

    def sample(self, labels: Tensor, seeds: Tensor, knobs: Any) -> Tensor:
        images = torch.stack(
            [torch.rand(SHAPE, generator=torch.Generator().manual_seed(s)) for s in seeds.tolist()]
        )
        images[..., 0] = (labels - 0.5)[:, None, None]
        return images


class OneHot(nn.Module):
    """A teacher sure of the label that the left column carries; remembers what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return 1e4 * functional.one_hot((images[:, 0, 0, 0] > 0).long(), 2).float()


def config(**changes: Any) -> StudentConfig:
    training = {
        "images_seen": 48,
        "batch_size": 8,
        "augment": (),
        "snapshots": 2,
        "extra_augment": (),
    }
    training |= changes.pop("training", {})
    return StudentConfig(
        classifier=resnet.Config(width=8, blocks=1),
        training=StudentTraining(**training),
        synthesis=SynthesisConfig(period=1),
        **changes,
    )


def lesson(student: StudentConfig, val: ImageSet, teacher: nn.Module) -> Lesson:
    source = Source(Painter(), {}, val.class_names, np.array([0.5, 0.5]), None, teacher)
    return Lesson(
        student,
        source,
        Ensemble([Teacher(teacher, 1.0)]),
        teacher_prior=np.array([0.5, 0.5]),
        num_train=24,
        val=val,
        name="student",
    )


@pytest.mark.parametrize("augment", [(), ("vflip",)])
def test_a_one_hot_teacher_gives_the_student_of_hard_labels_bit_for_bit(
    context: Context, make_set: Callable[..., ImageSet], tmp_path: Path, augment: tuple[str, ...]
) -> None:
    val = make_set(20)
    for name, weight in (("soft", 0.0), ("hard", 1.0)):
        student = config(hard_weight=weight, temperature=1.0, training={"augment": augment})
        distil(lesson(student, val, OneHot()), tmp_path / name, context)
    soft, hard = (load_file(tmp_path / name / WEIGHTS) for name in ("soft", "hard"))
    assert soft.keys() == hard.keys()
    assert all(torch.equal(soft[name], hard[name]) for name in soft)


class Student(nn.Module):
    """A linear student that remembers what it is trained on."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)
        self.seen = seen

    def __deepcopy__(self, memo: Any) -> Student:
        copy = Student(self.seen)  # the averaged copy shares the memory
        copy.load_state_dict(self.state_dict())
        return copy

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.clone())
        return self.layer(images.flatten(1))


@pytest.fixture
def student_sees(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []
    monkeypatch.setattr(distillation, "build_classifier", lambda *_, **__: Student(seen))
    return seen


def test_the_teacher_labels_exactly_the_augmented_batch_of_the_student(
    context: Context,
    make_set: Callable[..., ImageSet],
    tmp_path: Path,
    student_sees: list[Tensor],
) -> None:
    teacher = OneHot()
    training = {"augment": ("shift", "cutout", "hflip", "noise"), "extra_augment": ("intensity",)}
    distil(lesson(config(training=training), make_set(20), teacher), tmp_path, context)
    assert len(student_sees) == 6
    for one, other in zip(teacher.seen, student_sees, strict=True):
        assert torch.equal(one, other)


def test_no_real_image_reaches_the_student(
    context: Context,
    make_set: Callable[..., ImageSet],
    tmp_path: Path,
    student_sees: list[Tensor],
) -> None:
    teacher = OneHot()
    distil(lesson(config(), make_set(20), teacher), tmp_path, context)
    for batch in [*student_sees, *teacher.seen]:
        greys = ((batch[:, 0, :, 0] + 1) * 127.5).round().unique().tolist()
        assert set(greys) <= {64.0, 191.0}, "only the painter's grey values, never 0 or 255"


def test_hard_labels_alone_never_ask_the_teacher(
    context: Context, make_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    teacher = OneHot()
    distil(lesson(config(hard_weight=1.0), make_set(20), teacher), tmp_path, context)
    assert teacher.seen == []


class Fixed(nn.Module):
    """Gives the same logits [N,K] to every set of N images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_loss_mixes_soft_and_hard_labels_by_the_formula(
    weight: float, temperature: float
) -> None:
    given, said = torch.randn(5, 3), torch.randn(5, 3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    calibrated = 1.5
    student = config(hard_weight=weight, temperature=temperature)
    loss = distillation_loss(Teacher(Fixed(given), calibrated), student, torch.randn(3))
    soft = softmax_by_hand(given / (calibrated * temperature))
    divergence = (soft * (soft / softmax_by_hand(said / temperature)).log()).sum(dim=1)
    hard = -softmax_by_hand(said)[range(5), labels].log()
    expected = (1 - weight) * temperature**2 * divergence + weight * hard
    losses = loss(said, torch.zeros(5), labels)
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)


def softmax_by_hand(logits: Tensor) -> Tensor:
    """Returns probabilities in float64."""
    powers = torch.exp(logits.double())
    return powers / powers.sum(dim=1, keepdim=True)


def gradient(student: StudentConfig, given: Tensor, said: Tensor) -> Tensor:
    """Returns that of the loss by a student's logits [N,K], its teacher's being `given`."""
    said = said.double().requires_grad_()
    loss = distillation_loss(Fixed(given.double()), student, torch.zeros(given.shape[1]))
    loss(said, torch.zeros(len(given)), torch.zeros(len(given), dtype=torch.int64)).sum().backward()
    assert said.grad is not None
    return said.grad


def test_at_temperature_1_a_step_is_that_of_the_cross_entropy_to_the_soft_labels() -> None:
    given, said = torch.randn(5, 3), torch.randn(5, 3)
    expected = softmax_by_hand(said) - softmax_by_hand(given)
    torch.testing.assert_close(gradient(config(temperature=1.0), given, said), expected)


def test_at_a_high_temperature_a_step_brings_logits_together() -> None:
    given, said = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    apart = said - given
    expected = (apart - apart.mean(dim=1, keepdim=True)) / 3  # Hinton et al. 2015, equation 4
    got = gradient(config(temperature=1e4), given, said)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_the_prior_correction_is_bayes_rule() -> None:
    likelihood = torch.rand(7, 3, dtype=torch.float64)  # p(image | class)
    real, synthetic = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([1 / 3, 1 / 3, 1 / 3])
    labels, log_odds = torch.zeros(7, dtype=torch.int64), (synthetic / real).log()
    teacher = Fixed((likelihood * real).log().float())
    for share, prior in ((0.0, real), (1.0, synthetic)):
        loss = distillation_loss(teacher, config(prior_correction=share), log_odds)
        said = (likelihood * prior).log().float().requires_grad_()
        loss(said, torch.zeros(7), labels).sum().backward()
        assert said.grad is not None
        torch.testing.assert_close(said.grad, torch.zeros(7, 3), atol=1e-6, rtol=0)


def test_knobs_of_the_student_start_from_its_recipe() -> None:
    usual = StudentConfig(synthesis=SynthesisConfig(period=1))
    assert {name: knob.default for name, knob in KNOBS.items()} == {
        name: knob.default for name, knob in student_knobs(usual).items()
    }
    own = student_knobs(StudentConfig(hard_weight=1.0, temperature=2.0))
    assert (own["hard_weight"].default, own["temperature"].default) == (1.0, 2.0)
    turned = with_knobs(StudentConfig(), {"hard_weight": 0.3, "latent_std": 1.2})
    assert (turned.hard_weight, turned.temperature) == (0.3, StudentConfig().temperature)


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_sets_what_it_is_read_from(name: str) -> None:
    for value in KNOBS[name].choices:
        turned = with_knobs(StudentConfig(synthesis=SynthesisConfig(period=2)), {name: value})
        assert student_knobs(turned)[name].default == value
        validated = SynthesisConfig.model_validate(turned.synthesis.model_dump())
        assert validated == turned.synthesis, "values that a recipe may have"


@pytest.mark.parametrize(
    ("name", "value"), [("set_size", -1.0), ("temperature", 0.0), ("filter_threshold", 1.5)]
)
def test_a_choice_that_no_recipe_may_have_is_refused(
    make_facts: Callable[..., Facts], name: str, value: float
) -> None:
    student = StudentConfig(classifier=resnet.Config()).completed(make_facts())
    check_choices(student, student_knobs(student))
    with pytest.raises(RecipeError, match=f"tuning.choices.{name}"):
        check_choices(student, {name: Knob(value, (value,))})


def test_turning_the_filter_keeps_its_retries() -> None:
    filtering = StudentConfig(synthesis=SynthesisConfig(filter=FilterConfig(retries=9)))
    turned = with_knobs(filtering, {"filter_threshold": 0.6}).synthesis.filter
    assert turned == FilterConfig(threshold=0.6, retries=9)
    assert with_knobs(filtering, {"filter_threshold": NO_FILTER}).synthesis.filter is None


@pytest.mark.parametrize("given", [None, 0, 7])
def test_the_period_suits_the_hardware_unless_it_is_given(
    make_facts: Callable[..., Facts], given: int | None
) -> None:
    synthesis = SynthesisConfig() if given is None else SynthesisConfig(period=given)
    student = StudentConfig(synthesis=synthesis)
    gpu, cpu = (
        student.completed(make_facts(on_gpu=on_gpu)).synthesis.period for on_gpu in (True, False)
    )
    if given is None:
        assert gpu == 1 < cpu, "sampling is dear on a processor"
    else:
        assert gpu == cpu == given
