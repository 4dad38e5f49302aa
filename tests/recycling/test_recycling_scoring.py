"""Scores: which one is best, and which generators are refused before a student is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet, to_unit
from knowledge_recycling.errors import RunError
from knowledge_recycling.models.classifiers import resnet
from knowledge_recycling.recycling.distillation import Ensemble, Lesson, StudentConfig, Teacher
from knowledge_recycling.recycling.scoring import (
    Score,
    SelectionConfig,
    bar_of,
    below,
    best_of,
    cheap,
    defect,
    loss_attack,
    outdone,
    score,
)
from knowledge_recycling.recycling.synthesis import Source, SynthesisConfig
from knowledge_recycling.training.classifier import StudentTraining
from knowledge_recycling.training.loop import Record, read_records


class Painter(nn.Module):
    """Gives `paint(noise)`, noise in [-1, 1] from the seeds."""

    def __init__(self, paint: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.paint = paint
        self.calls = 0

    def sample(self, labels: Tensor, seeds: Tensor, knobs: object) -> Tensor:
        self.calls += 1
        generator = torch.Generator()
        noise = [torch.rand(1, 8, 8, generator=generator.manual_seed(s)) for s in seeds.tolist()]
        return self.paint(torch.stack(noise) * 2 - 1)


class Teacher0(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 0, 0, 0], -images[:, 0, 0, 0]], dim=1)


def source_of(paint: Callable[[Tensor], Tensor]) -> Source:
    return Source(Painter(paint), {}, ("a", "b"), np.array([0.5, 0.5]), None, Teacher0())


def with_one(value: float) -> Callable[[Tensor], Tensor]:
    def paint(noise: Tensor) -> Tensor:
        noise[3, 0, 2, 2] = value
        return noise

    return paint


@pytest.mark.parametrize(
    ("paint", "failure"),
    [
        (lambda noise: noise, None),
        (lambda noise: noise * 0.1, None),
        (with_one(float("nan")), "NaN"),
        (with_one(float("inf")), "NaN or infinite"),
        (torch.zeros_like, "the same"),
        (lambda noise: noise[:1].expand_as(noise), "the same"),
        (lambda noise: noise * 1e-3, "the same"),
    ],
)
def test_broken_and_constant_generators_are_found(
    context: Context, paint: Callable[[Tensor], Tensor], failure: str | None
) -> None:
    found = defect(source_of(paint), context)
    assert (found is None) == (failure is None)
    assert failure is None or failure in str(found)


def scored(cas: float, robust: float, loss: float = 0.4, num_val: int = 10_000) -> Score:
    return Score(cas=cas, robust_cas=robust, loss=loss, auroc=0.5, num_val=num_val)


def test_the_highest_mean_wins_and_ties_go_to_the_lower_loss() -> None:
    scores = [
        Score(failure="broken"),
        scored(0.804, 0.5, loss=0.5),
        scored(0.802, 0.798, loss=0.5),
        scored(0.800, 0.800, loss=0.4),
        Score(failure="broken"),
    ]
    assert best_of(scores, 1, Path("candidates")) == 3
    assert best_of(scores, 0, Path("candidates")) == 3, "a failed favourite gives way"


@pytest.mark.parametrize(("num_val", "best"), [(1000, 0), (2000, 2)])
def test_where_cas_can_tell_a_robust_setting_that_is_worse_does_not_win(
    num_val: int, best: int
) -> None:
    scores = [scored(0.893, 0.535), scored(0.91, 0.51), scored(0.91, 0.518), scored(0.862, 0.598)]
    scores = [replace(each, num_val=num_val) for each in scores]
    # sqrt(2) sqrt(2 ln 3) = 2.1 standard errors of .91: .0190 with 1,000 images, .0134 with 2,000
    assert best_of(scores, 0, Path("trials")) == best


def test_accuracy_on_corrupted_copies_alone_does_not_beat_the_favourite_at_a_higher_loss() -> None:
    # two students of 1,707 images: hard labels made the second more robust and no better
    scores = [scored(0.860, 0.497, loss=0.457), scored(0.864, 0.575, loss=0.471)]
    scores = [replace(each, num_val=1707) for each in scores]
    assert best_of(scores, 0, Path("trials")) == 0
    assert best_of([scores[0], replace(scores[1], loss=0.45)], 0, Path("trials")) == 1
    worse = [replace(scores[0], cas=0.7), scores[1]]
    assert best_of(worse, 0, Path("trials")) == 1, "a favourite that is clearly worse gives way"


@pytest.mark.parametrize(("num_val", "best"), [(100, 0), (10_000, 1)])
def test_the_favourite_stays_unless_beaten_by_a_standard_error(num_val: int, best: int) -> None:
    scores = [scored(0.80, 0.70, num_val=num_val), scored(0.82, 0.72, num_val=num_val)]
    rng = np.random.default_rng(0)
    simulated = (rng.random((4000, num_val)) < 0.75).mean(axis=1).std()
    assert scores[0].standard_error == pytest.approx(simulated, rel=0.05)
    assert best_of(scores, 0, Path("candidates")) == best


@pytest.mark.parametrize("tries", [2, 5, 20])
def test_equals_seldom_beat_the_favourite_by_luck(tries: int) -> None:
    rng = np.random.default_rng(tries)
    num_val, wins = 200, 0
    for _ in range(500):
        cas, robust = rng.binomial(num_val, 0.8, (2, tries + 1)) / num_val
        scores = [scored(*each, num_val=num_val) for each in zip(cas, robust, strict=True)]
        wins += best_of(scores, 0, Path("trials")) != 0
    assert wins / 500 < 1 / 3


def test_all_failures_are_an_error_that_tells_them() -> None:
    scores = [Score(failure="NaN"), Score(failure="flat"), Score(failure="NaN")]
    with pytest.raises(RunError) as caught:
        best_of(scores, 0, Path("candidates"))
    assert caught.value.got == "NaN; flat"
    assert "--redo generator" in str(caught.value.next_step)


def leaking(cas: float, leakage: float | None) -> Score:
    return replace(scored(cas, cas), leakage=leakage)


@pytest.mark.parametrize(
    ("limit", "best"), [(None, 0), (0.7, 0), (0.60, 1), (0.59, 2), (0.52, 2), (0.5, 2)]
)
def test_under_a_leakage_limit_the_best_of_those_below_it_wins(
    limit: float | None, best: int
) -> None:
    scores = [leaking(0.9, 0.65), leaking(0.8, 0.60), leaking(0.7, 0.52), leaking(0.99, None)]
    if limit is None:
        scores.pop()
    assert best_of(scores, 0, Path("trials"), limit) == best


def test_the_loss_attack_is_the_share_of_pairs_in_which_the_member_has_the_smaller_loss(
    context: Context, make_set: Callable[..., ImageSet]
) -> None:
    members, holdout = make_set(30), make_set(11)
    asked = members.subset(np.linspace(0, 29, 11).astype(int))

    class Corner(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images[:, 0, 7, 7], images[:, 0, 0, 7]], dim=1)

    teacher = Corner()

    def losses(images: ImageSet) -> np.ndarray:
        logits = teacher(to_unit(images.images)).double()
        own = logits[torch.arange(len(images)), torch.from_numpy(images.labels)]
        return (logits.logsumexp(dim=1) - own).numpy()

    a, b = losses(asked)[:, None], losses(holdout)[None]
    pairs = np.mean((a < b) + 0.5 * (a == b))
    found = loss_attack(teacher, members, holdout, context)
    assert found == pytest.approx(pairs)
    assert loss_attack(teacher, holdout, holdout, context) == pytest.approx(0.5)


def test_the_cheap_student_is_shorter_and_sees_one_smaller_set() -> None:
    student = StudentConfig(
        training=StudentTraining(images_seen=1000),
        synthesis=SynthesisConfig(set_size=2.0, period=3),
        hard_weight=0.3,
    )
    selection = SelectionConfig(training_share=0.25, set_share=0.5)
    short = cheap(student, selection, {})
    assert (short.training.images_seen, short.training.snapshots) == (250, 3)
    assert (short.synthesis.set_size, short.synthesis.period) == (1.0, 0)
    assert short.hard_weight == 0.3
    turned = cheap(student, selection, {"set_size": 4.0, "period": 8.0, "hard_weight": 1.0})
    assert (turned.synthesis.set_size, turned.synthesis.period) == (2.0, 8)
    assert turned.hard_weight == 1.0


@pytest.fixture
def lesson(make_set: Callable[..., ImageSet]) -> Callable[..., Lesson]:
    def make(paint: Callable[[Tensor], Tensor]) -> Lesson:
        student = StudentConfig(
            classifier=resnet.Config(width=8, blocks=1),
            training=StudentTraining(images_seen=24, batch_size=8, augment=(), snapshots=1),
            synthesis=SynthesisConfig(period=0),
        )
        teacher = Teacher(Teacher0(), 1.0)
        return Lesson(
            student,
            source_of(paint),
            Ensemble([teacher]),
            teacher_prior=np.array([0.5, 0.5]),
            num_train=16,
            val=make_set(20),
            name="t",
        )

    return make


def test_a_score_is_measured_once_and_then_read(
    lesson: Callable[..., Lesson], context: Context, tmp_path: Path
) -> None:
    first = score(lesson(lambda noise: noise), {"part": "a"}, tmp_path / "part", context)
    assert first.failure is None
    assert first.cas is not None
    assert 0 <= first.cas <= 1
    assert first.num_val == 20
    assert first.images_per_second is not None
    assert first.images_per_second > 0
    again = lesson(lambda noise: noise)
    assert score(again, {"part": "a"}, tmp_path / "part", context) == first
    assert again.source.generator.calls == 0


def test_no_student_is_trained_on_a_broken_generator(
    lesson: Callable[..., Lesson], context: Context, tmp_path: Path
) -> None:
    result = score(lesson(torch.zeros_like), {"part": "a"}, tmp_path / "part", context)
    assert result == Score(failure="all images are the same")
    assert {path.name for path in (tmp_path / "part").iterdir()} == {"done.json", "score.json"}


def records_of(*accuracies: float) -> list[Record]:
    return [{"val_accuracy": each, "val_robust_accuracy": 0.9 * each} for each in accuracies]


def test_a_setting_may_fall_behind_by_a_standard_error_until_the_last_snapshot() -> None:
    bar = bar_of(records_of(0.5, 0.8, 0.9), 100)
    assert bar == pytest.approx((0.5 - 0.05, 0.8 - 0.04))  # sqrt(p (1 - p) / 100)
    assert not below(records_of(0.46), bar)
    assert below(records_of(0.44), bar)
    assert not below(records_of(0.46, 0.77), bar)
    assert below(records_of(0.7, 0.75), bar)
    assert not below(records_of(0.46, 0.77, 0.1), bar)


def test_a_setting_that_falls_behind_is_given_up_at_once_and_never_chosen(
    lesson: Callable[..., Lesson], context: Context, tmp_path: Path
) -> None:
    made = lesson(lambda noise: noise)
    training = made.config.training.model_copy(update={"images_seen": 48, "snapshots": 3})
    made = replace(made, config=made.config.model_copy(update={"training": training}))
    result = score(made, {}, tmp_path / "part", context, give_up=partial(below, bar=(1.1, 1.1)))
    assert result.failure == "given up after 16 images: behind"
    assert [each["images_seen"] for each in read_records(tmp_path / "part")] == [16]
    assert best_of([scored(0.1, 0.1), result], 0, tmp_path) == 0
    through = score(made, {}, tmp_path / "other", context, give_up=partial(below, bar=(0.0, 0.0)))
    assert through.failure is None
    assert len(read_records(tmp_path / "other")) == 3


AHEAD, LEVEL, SURE, BEHIND = (0.9, 0.3), (0.83, 0.3), (0.86, 0.5), (0.7, 0.5)


@pytest.mark.parametrize(
    ("rival", "lost"),
    [
        ([BEHIND], False),  # once is no proof
        ([BEHIND, BEHIND], True),
        ([BEHIND, AHEAD], False),
        ([AHEAD, BEHIND], False),
        ([AHEAD, LEVEL, LEVEL], True),  # not ahead by a standard error, .04
        ([AHEAD, SURE, SURE], True),  # a higher loss
        ([BEHIND, AHEAD, BEHIND, AHEAD], False),
    ],
)
def test_a_full_student_is_given_up_if_it_loses_twice_to_the_favourite_of_its_age(
    tmp_path: Path, rival: list[tuple[float, float]], lost: bool
) -> None:
    def record(accuracy: float, loss: float) -> Record:
        names = ("val_accuracy", "val_robust_accuracy", "val_auroc", "val_loss")
        return dict(zip(names, (accuracy, accuracy, 0.5, loss), strict=True))

    favourite = [record(0.8, 0.4)] * 4
    assert outdone([record(*each) for each in rival], favourite, 100, tmp_path) is lost
    younger = [record(0.1, 3.0), *favourite]
    assert outdone([record(*AHEAD)], younger, 100, tmp_path) is False
    assert outdone([record(0.5, 1.0)] * 2, younger, 100, tmp_path) is False, "ahead at first"
    assert outdone([record(0.5, 1.0)] * 3, younger, 100, tmp_path) is True
