"""Training of classifiers: losses against torch's, AUROC against scikit-learn, the best kept.

NaN never wins, the schedule is compared with its formula, and a small network must learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling.config import Facts
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet, to_unit
from knowledge_recycling.models.build import build_classifier
from knowledge_recycling.models.classifiers import resnet
from knowledge_recycling.randomness import rng
from knowledge_recycling.storage import read_weights
from knowledge_recycling.training.batches import Shuffled
from knowledge_recycling.training.classifier import (
    EARLY,
    WEIGHTS,
    ClassifierObjective,
    ClassifierTraining,
    Fit,
    KeepBest,
    StudentTraining,
    TeacherTraining,
    fit_classifier,
    hard_loss,
)
from knowledge_recycling.training.validation import (
    kept,
    macro_auroc,
    out_of_patience,
    predict_logits,
    validate,
)

CONFIG = ClassifierTraining(images_seen=480, batch_size=8, augment=(), snapshots=3)


class Linear(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


class Fixed(nn.Module):
    """Gives the same logits [N,K] to every set of N images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 1.0, 4.0])])
def test_the_loss_of_a_step_is_the_mean_over_its_images_with_their_class_weights(
    weight: Tensor | None, fabric: Fabric
) -> None:
    images, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 0, 1])
    network = Linear()
    logits = network(images).detach()
    objective = ClassifierObjective(
        network, CONFIG, hard_loss(), num_steps=10, fabric=fabric, class_weight=weight
    )
    loss = objective.step(images, labels, rng(0, "t"))["loss"]
    losses = functional.cross_entropy(logits, labels, weight=weight, reduction="none")
    torch.testing.assert_close(loss, losses.mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_spreads_a_share_of_each_label_over_all_classes(smoothing: float) -> None:
    logits, labels = torch.randn(9, 4), torch.arange(9) % 4
    losses = hard_loss(smoothing)(logits, torch.zeros(9, 1, 2, 2), labels)
    targets = torch.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(losses, expected)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine(fabric: Fabric) -> None:
    steps = 100
    objective = ClassifierObjective(Linear(), CONFIG, hard_loss(), num_steps=steps, fabric=fabric)
    rates = []
    for step in range(steps):
        objective.step(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), rng(0, step))
        rates.append(objective.optimizer.param_groups[0]["lr"])
    peak = CONFIG.learning_rate * 8 / 128
    assert max(rates) == pytest.approx(peak, rel=0.01)
    assert rates[0] == pytest.approx(peak / 5, rel=0.01)
    assert rates[50] == pytest.approx(peak * (0.01 + 0.99 * 0.5), rel=0.01)
    assert rates[-1] < 0.02 * peak
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_only_matrices_and_kernels_decay(fabric: Fabric) -> None:
    network = resnet.Classifier(resnet.Config(width=8, blocks=1), (1, 8, 8), 2)
    objective = ClassifierObjective(network, CONFIG, hard_loss(), num_steps=9, fabric=fabric)
    decayed, plain = objective.optimizer.param_groups
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (CONFIG.weight_decay, 0.0)
    assert len(decayed["params"] + plain["params"]) == len(list(network.parameters()))


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_macro_auroc_is_that_of_scikit_learn(num_classes: int) -> None:
    random = np.random.default_rng(num_classes)
    probabilities = random.dirichlet(np.ones(num_classes), 60)
    labels = np.concatenate([np.arange(num_classes), random.integers(num_classes, size=60)])[:60]
    expected = (
        roc_auc_score(labels, probabilities[:, 1])
        if num_classes == 2
        else roc_auc_score(labels, probabilities, multi_class="ovr")
    )
    assert macro_auroc(probabilities, labels) == pytest.approx(expected)


def test_macro_auroc_leaves_out_classes_that_are_absent() -> None:
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet(np.ones(3), 20), np.arange(20) % 2
    parts = [roc_auc_score(labels == k, probabilities[:, k]) for k in (0, 1)]
    assert macro_auroc(probabilities, labels) == pytest.approx(np.mean(parts))


def test_validation_agrees_with_scikit_learn(
    fabric: Fabric, make_set: Callable[..., ImageSet]
) -> None:
    val, logits = make_set(30, num_classes=3), torch.randn(30, 3)
    measures = validate(Fixed(logits), val, fabric)
    chances = logits.double().softmax(dim=1).numpy()
    assert measures["val_accuracy"] == np.mean(chances.argmax(1) == val.labels)
    assert measures["val_loss"] == pytest.approx(log_loss(val.labels, chances))
    expected = roc_auc_score(val.labels, chances, multi_class="ovr")
    assert measures["val_auroc"] == pytest.approx(expected)


def test_predictions_do_not_depend_on_the_batch_size(
    fabric: Fabric, make_set: Callable[..., ImageSet]
) -> None:
    network = resnet.Classifier(resnet.Config(width=8, blocks=1), (1, 8, 8), 2)
    logits = [predict_logits(network, make_set(23), fabric, size) for size in (23, 5)]
    np.testing.assert_allclose(*logits, atol=1e-5)
    assert logits[0].dtype == np.float64
    assert not network.training


def logits_with(accuracy: float, sharpness: float, labels: np.ndarray) -> Tensor:
    right = torch.arange(len(labels)) < accuracy * len(labels)
    shown = torch.where(right, torch.from_numpy(labels), 1 - torch.from_numpy(labels))
    return functional.one_hot(shown, 2).float() * sharpness


def test_the_latest_snapshot_within_a_standard_error_of_the_best_is_kept(
    fabric: Fabric, make_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    val, path = make_set(20), tmp_path / WEIGHTS
    keep, records, on_disk = KeepBest(val, fabric, path.parent), [], []
    for accuracy, sharpness in [(0.5, 1), (0.8, 9), (0.7, 2), (0.8, 3), (0.75, 4), (0.7, 5)]:
        network = Fixed(logits_with(accuracy, sharpness, val.labels))
        records.append(keep(network, 0, records))
        best = Fixed(torch.zeros(20, 2))
        read_weights(path, best)
        on_disk.append((float((best.logits.argmax(1).numpy() == val.labels).mean()),
                     float(best.logits.detach().max())))  # fmt: skip
    # one standard error of 0.8 on 20 images is 0.089
    assert on_disk == [(0.5, 1), (0.8, 9), (0.8, 9), (0.8, 3), (0.75, 4), (0.75, 4)]
    assert kept(records, len(val)) == 4


def snapshot(accuracy: float, robust: float, loss: float) -> dict[str, float]:
    return {"val_accuracy": accuracy, "val_robust_accuracy": robust, "val_loss": loss}


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (snapshot(0.96, 0.48, 0.09), 1),  # better on the images themselves
        (snapshot(0.96, 0.48, 0.13), 0),  # by chance, says the loss
        (snapshot(0.94, 0.48, 0.09), 0),
        (snapshot(0.95, 0.54, 0.13), 1),  # close
    ],
)
def test_corrupted_copies_alone_cost_no_snapshot(later: dict[str, float], expected: int) -> None:
    assert kept([snapshot(0.955, 0.55, 0.12), later], 1707) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_with_broken_logits_never_wins(
    fabric: Fabric, make_set: Callable[..., ImageSet], tmp_path: Path, bad: float
) -> None:
    val, path = make_set(20), tmp_path / WEIGHTS
    keep = KeepBest(val, fabric, path.parent)
    broken = logits_with(1.0, 1, val.labels)
    broken[3, 0] = bad
    worst = logits_with(0.0, 50, val.labels)
    records = [keep(Fixed(broken), 0, [])]
    assert all(math.isfinite(value) for value in records[0].values())
    records.append(keep(Fixed(worst), 0, records))
    records.append(keep(Fixed(broken), 0, records))
    assert kept(records, len(val)) == 1
    best = Fixed(torch.zeros(20, 2))
    read_weights(path, best)
    assert torch.equal(best.logits.data, worst)


@pytest.mark.parametrize(("early", "expected"), [(25, 2.0), (5, 1.0), (100, 4.0)])
def test_the_snapshot_to_stop_early_at_is_kept_apart(
    fabric: Fabric, make_set: Callable[..., ImageSet], tmp_path: Path, early: float, expected: float
) -> None:
    val = make_set(20)
    keep, records = KeepBest(val, fabric, tmp_path, early), []
    for images_seen, sharpness in [(10, 1), (20, 2), (30, 3), (40, 4)]:
        network = Fixed(logits_with(0.5 + images_seen / 100, sharpness, val.labels))
        records.append(keep(network, images_seen, records))
    stopped = Fixed(torch.zeros(20, 2))
    read_weights(tmp_path / EARLY, stopped)
    assert float(stopped.logits.detach().max()) == expected


@pytest.mark.parametrize(
    ("patience", "accuracies", "ends"),
    [(None, [0.9] + [0.1] * 9, False), (2, [0.9, 0.1, 0.1], True), (2, [0.1, 0.9, 0.1], False),
     (1, [0.5], False), (1, [0.5, 0.5], True)],
)  # fmt: skip
def test_patience_counts_snapshots_since_the_best(
    patience: int | None, accuracies: list[float], ends: bool
) -> None:
    records = [
        {"val_accuracy": each, "val_robust_accuracy": each, "val_loss": 1.0} for each in accuracies
    ]
    assert out_of_patience(patience)(records) is ends


def fit(train_set: ImageSet, val: ImageSet, **changes: Any) -> Fit:
    config = CONFIG.model_copy(update=changes)
    batches = Shuffled(train_set, 8, seed=0, name="t")
    return Fit("t", config, hard_loss(), batches, val)


def small_resnet(context: Context) -> nn.Module:
    config = resnet.Config(width=8, blocks=1)
    return build_classifier(config, (1, 8, 8), 2, fabric=context.fabric, seed=0, name="t")


def test_a_small_network_learns_and_its_best_weights_are_on_disk(
    context: Context, make_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    val = make_set(30)
    records = fit_classifier(small_resnet(context), fit(make_set(64), val), tmp_path, context)
    assert len(records) == 3
    best = records[kept(records, len(val))]
    assert best["val_accuracy"] > 0.9
    network = small_resnet(context)
    read_weights(tmp_path / WEIGHTS, network)
    assert validate(network, val, context.fabric)["val_loss"] == best["val_loss"]
    assert "num_batches" not in best


def test_patience_ends_the_fit_early(
    context: Context, make_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    val = make_set(30)
    lesson = fit(make_set(64), val, snapshots=20, learning_rate=1e-9, patience=1)
    assert len(fit_classifier(small_resnet(context), lesson, tmp_path, context)) < 20


def test_class_weights_reach_the_loss(
    context: Context, make_set: Callable[..., ImageSet], tmp_path: Path
) -> None:
    val = make_set(30)
    lesson = replace(fit(make_set(64), val), class_weight=np.array([0.0, 2.0]))
    network = small_resnet(context)
    fit_classifier(network, lesson, tmp_path, context)
    logits = predict_logits(network, val, context.fabric)
    assert (logits.argmax(axis=1) == 1).all(), "a class of weight 0 is never learnt"


@pytest.mark.parametrize(
    ("num_train", "batch_size", "length"),
    [
        (16, 16, 12_000),
        (256, 32, 48_000),
        (1024, 64, 96_000),
        (4096, 128, 192_000),
        (90_000, 128, 900_000),
    ],
)
def test_derived_lengths_and_batches(
    make_facts: Callable[..., Facts], num_train: int, batch_size: int, length: int
) -> None:
    facts = make_facts(num_train=num_train, symmetries=("hflip",))
    config = ClassifierTraining().completed(facts)
    assert config.batch_size == batch_size
    assert config.images_seen == length
    assert config.augment == ("shift", "cutout", "hflip")


def test_a_student_is_shown_all_that_its_teacher_is_and_more(
    make_facts: Callable[..., Facts],
) -> None:
    facts = make_facts(num_train=10_000, symmetries=("vflip",))
    student, teacher = (each().completed(facts) for each in (StudentTraining, TeacherTraining))
    assert student.augment == teacher.augment
    assert (bool(student.extra_augment), bool(teacher.extra_augment)) == (True, False)
    assert (student.images_seen, student.batch_size) == (
        2 * teacher.images_seen,
        teacher.batch_size,
    )


@pytest.mark.parametrize(
    ("num_train", "length"),
    [(16, 100_000), (256, 200_000), (4096, 400_000), (10_000, 600_000), (90_000, 1_800_000)],
)
def test_derived_lengths_of_students(
    make_facts: Callable[..., Facts], num_train: int, length: int
) -> None:
    facts = make_facts(num_train=num_train)
    assert StudentTraining().completed(facts).images_seen == length


def test_images_reach_the_network_in_the_unit_range(
    fabric: Fabric, make_set: Callable[..., ImageSet]
) -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return torch.zeros(len(images), 2)

    image_set = make_set(10)
    predict_logits(Spy(), image_set, fabric, 4)
    assert torch.equal(torch.cat(seen), to_unit(image_set.images))
