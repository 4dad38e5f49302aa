"""Utility and gap against scikit-learn and torchmetrics, their intervals against scikit-learn's
metrics of every resample, Wilson's formula and the truth behind simulated labels.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)
from torchmetrics.functional.classification import multiclass_calibration_error

import knowledge_recycling.evaluation.utility as utility_module
from knowledge_recycling.errors import DataError
from knowledge_recycling.evaluation.utility import (
    _weights,
    measure_fidelity,
    measure_gap,
    measure_utility,
)

METRICS = ("accuracy", "balanced_accuracy", "auroc", "f1", "ece")


def make_predictions(num, num_classes, seed=0, skill=1.5, decimals=None):
    """Returns probabilities [N,K] and labels [N] of unequal classes; rounding makes ties."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(num_classes, 3.0))
    labels = rng.choice(num_classes, num, p=shares)
    labels[: 2 * num_classes] = np.arange(2 * num_classes) % num_classes
    logits = rng.normal(size=(num, num_classes)) + skill * np.eye(num_classes)[labels]
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return (chances if decimals is None else np.round(chances, decimals)), labels


def utility_of(chances, labels, seed=0, resamples=10):
    return measure_utility(chances, labels, np.random.default_rng(seed), resamples)


def gap_of(teacher, student, labels, seed=0, resamples=200):
    return measure_gap(teacher, student, labels, np.random.default_rng(seed), resamples)


def scikit_learn(chances, labels) -> dict[str, float]:
    predicted = chances.argmax(axis=1)
    binary = chances.shape[1] == 2
    return {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "auroc": roc_auc_score(labels, chances[:, 1])
        if binary
        else np.mean([roc_auc_score(labels == k, chances[:, k]) for k in np.unique(labels)]),
        "f1": f1_score(labels, predicted, average="macro"),
    }


@pytest.mark.parametrize("num_classes", [2, 3, 8])
@pytest.mark.parametrize("decimals", [None, 1])
def test_values_are_scikit_learns(num_classes, decimals):
    chances, labels = make_predictions(400, num_classes, decimals=decimals)
    utility = utility_of(chances, labels)
    for name, expected in scikit_learn(chances, labels).items():
        assert getattr(utility, name).value == pytest.approx(expected, abs=1e-12), name
    expected = confusion_matrix(labels, chances.argmax(axis=1))
    assert utility.confusion == expected.tolist()
    recalls = expected.diagonal() / expected.sum(axis=1)
    assert [each.value for each in utility.recall] == pytest.approx(recalls)
    assert utility.n == 400


def test_macro_auroc_is_scikit_learns_one_against_rest():
    chances, labels = make_predictions(300, 5)
    expected = roc_auc_score(labels, chances, multi_class="ovr", average="macro")
    assert utility_of(chances, labels).auroc.value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_classes", [2, 8])
@pytest.mark.parametrize("skill", [0.0, 3.0])
def test_calibration_error_is_torchmetrics(num_classes, skill):
    chances, labels = make_predictions(500, num_classes, skill=skill)
    expected = multiclass_calibration_error(
        torch.from_numpy(chances), torch.from_numpy(labels), num_classes, n_bins=15, norm="l1"
    )
    assert utility_of(chances, labels).ece.value == pytest.approx(float(expected), abs=1e-6)


def test_reliability_bins_hold_all_images_and_give_the_calibration_error():
    chances, labels = make_predictions(500, 3)
    utility = utility_of(chances, labels)
    excess = [each.count * abs(each.accuracy - each.confidence) for each in utility.reliability]
    assert sum(each.count for each in utility.reliability) == 500
    assert sum(excess) / 500 == pytest.approx(utility.ece.value)
    confidences = [each.confidence for each in utility.reliability]
    assert confidences == sorted(confidences)


def test_bins_are_fifteenths_that_hold_their_upper_edge():
    confidence = np.array([0.6, 0.61, 0.92, 0.94])  # edges at 9/15, 10/15, 13/15 and 14/15
    chances = np.stack([confidence, 1 - confidence], axis=1)
    bins = utility_of(chances, np.array([0, 1, 0, 1])).reliability
    assert [(each.confidence, each.accuracy) for each in bins] == [
        (0.6, 1.0),
        (0.61, 0.0),
        (0.92, 1.0),
        (0.94, 0.0),
    ]


def test_certainty_has_a_bin():
    chances = np.eye(2)[[0, 1, 1, 0]]
    utility = utility_of(chances, np.array([0, 1, 1, 1]))
    assert [(each.confidence, each.accuracy, each.count) for each in utility.reliability] == [
        (1.0, 0.75, 4)
    ]


def resampled(labels, seed, resamples):
    """Yields the image indices of each resample that the same seed draws."""
    for weights in _weights(labels, np.random.default_rng(seed), resamples):
        for column in weights.T.astype(np.int64):
            yield np.repeat(np.arange(len(labels)), column)


def test_resamples_keep_the_size_of_every_class():
    labels = make_predictions(100, 3)[1]
    counts = np.bincount(labels)
    drawn = list(resampled(labels, 0, 500))
    assert len(drawn) == 500
    for indices in drawn:
        np.testing.assert_array_equal(np.bincount(labels[indices]), counts)
    times = np.stack([np.bincount(indices, minlength=100) for indices in drawn])
    assert abs(times.mean(axis=0) - 1).max() < 0.25
    np.testing.assert_allclose(times.var(axis=0).mean(), np.mean(1 - 1 / counts[labels]), rtol=0.05)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("chunk", [utility_module.CHUNK, 1000])
def test_intervals_are_the_quantiles_of_scikit_learns_metrics(num_classes, chunk, monkeypatch):
    monkeypatch.setattr(utility_module, "CHUNK", chunk)
    chances, labels = make_predictions(150, num_classes, decimals=2)
    utility = utility_of(chances, labels, seed=7, resamples=30)
    rows = [scikit_learn(chances[i], labels[i]) for i in resampled(labels, 7, 30)]
    for name in rows[0]:
        low, high = np.quantile([row[name] for row in rows], [0.025, 0.975])
        estimate = getattr(utility, name)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12), name


def test_gap_intervals_are_the_quantiles_of_paired_differences():
    teacher, labels = make_predictions(200, 3)
    student = 0.7 * teacher + 0.3 * make_predictions(200, 3, seed=1)[0]
    gap = gap_of(teacher, student, labels, seed=7, resamples=30)
    indices = [np.arange(200), *resampled(labels, 7, 30)]
    of_teacher = [scikit_learn(teacher[i], labels[i]) for i in indices]
    of_student = [scikit_learn(student[i], labels[i]) for i in indices]
    for metric in ("accuracy", "balanced_accuracy", "auroc"):
        gains = [
            100 * (after[metric] - before[metric])
            for before, after in zip(of_teacher, of_student, strict=True)
        ]
        assert getattr(gap, f"{metric}_pp") == pytest.approx(gains[0])
        expected = np.quantile(gains[1:], [0.025, 0.975])
        assert getattr(gap, f"{metric}_ci95") == pytest.approx(tuple(expected), abs=1e-10)


def test_gap_changes_its_sign_when_teacher_and_student_change_places():
    teacher, labels = make_predictions(300, 4)
    student = make_predictions(300, 4, seed=1)[0]
    gap, reverse = gap_of(teacher, student, labels), gap_of(student, teacher, labels)
    for metric in ("accuracy", "balanced_accuracy", "auroc"):
        low, high = getattr(gap, f"{metric}_ci95")
        assert getattr(reverse, f"{metric}_pp") == pytest.approx(-getattr(gap, f"{metric}_pp"))
        assert getattr(reverse, f"{metric}_ci95") == pytest.approx((-high, -low))


def test_pairing_narrows_the_interval_of_similar_classifiers():
    teacher, labels = make_predictions(400, 3)
    other = make_predictions(400, 3, seed=1)[0]
    alike = gap_of(teacher, 0.9 * teacher + 0.1 * other, labels)
    unlike = gap_of(teacher, other, labels)
    assert np.ptp(alike.accuracy_ci95) < 0.5 * np.ptp(unlike.accuracy_ci95)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60, 140])
    covered = []
    for seed in range(200):
        right = rng.random(200) < 0.8
        chances = np.eye(2)[np.where(right, labels, 1 - labels)] * 0.6 + 0.2
        accuracy = utility_of(chances, labels, seed, resamples=200).accuracy
        covered.append(accuracy.low <= 0.8 <= accuracy.high)
    assert 0.89 <= np.mean(covered) <= 0.99


def test_calibration_interval_of_a_calibrated_classifier_reaches_down_to_nothing():
    rng = np.random.default_rng(0)
    reached = []
    for seed in range(50):
        chance = rng.uniform(size=600)
        labels = (rng.uniform(size=600) < chance).astype(np.int64)
        ece = utility_of(np.stack([1 - chance, chance], 1), labels, seed, resamples=200).ece
        assert 0 <= ece.low <= ece.value <= ece.high
        reached.append(ece.low < 0.015)
    assert np.mean(reached) > 0.6


def test_recall_has_wilsons_interval():
    labels = np.repeat([0, 1], [20, 10])
    predicted = np.repeat([0, 1, 1], [15, 5, 10])
    recall = utility_of(np.eye(2)[predicted], labels).recall
    share, count, z = 0.75, 20, 1.959963984540054
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * np.sqrt(share * 0.25 / count + z**2 / (4 * count**2))
    assert [recall[0].low, recall[0].high] == pytest.approx([centre - reach, centre + reach])
    assert recall[1].value == recall[1].high == 1.0
    assert recall[1].low < 0.8


def test_a_class_without_images_is_left_out():
    chances, labels = make_predictions(300, 4)
    labels[labels == 2] = 1
    utility = utility_of(chances, labels)
    assert utility.recall[2] is None
    assert utility.balanced_accuracy.value == pytest.approx(
        np.mean([each.value for each in utility.recall if each])
    )
    expected = np.mean([roc_auc_score(labels == k, chances[:, k]) for k in (0, 1, 3)])
    assert utility.auroc.value == pytest.approx(expected)
    json.dumps(asdict(utility), allow_nan=False)


def test_one_class_only_is_an_error():
    with pytest.raises(DataError, match="one class only"):
        utility_of(np.full((5, 2), 0.5), np.ones(5, dtype=np.int64))


def test_same_generator_same_intervals_and_inputs_unchanged():
    chances, labels = make_predictions(200, 3)
    before = chances.copy(), labels.copy()
    assert utility_of(chances, labels, seed=3) == utility_of(chances, labels, seed=3)
    assert utility_of(chances, labels, seed=3) != utility_of(chances, labels, seed=4)
    np.testing.assert_array_equal(chances, before[0])
    np.testing.assert_array_equal(labels, before[1])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(0, 10**6))
def test_values_do_not_depend_on_the_order_of_images(num_classes, seed):
    chances, labels = make_predictions(60, num_classes, seed, decimals=1)
    order = np.random.default_rng(seed).permutation(60)
    utility, shuffled = utility_of(chances, labels), utility_of(chances[order], labels[order])
    for name in METRICS:
        value = getattr(utility, name).value
        assert getattr(shuffled, name).value == pytest.approx(value, abs=1e-12)
    assert shuffled.confusion == utility.confusion


def test_fidelity_is_agreement_and_divergence():
    random = np.random.default_rng(0)
    labelling, student = random.dirichlet(np.ones(4), (2, 50))
    found = measure_fidelity(labelling, student)
    same = [int(a.argmax() == b.argmax()) for a, b in zip(labelling, student, strict=True)]
    assert found.agreement.value == np.mean(same)
    assert found.agreement.low < np.mean(same) < found.agreement.high
    by_row = [entropy(a, b) for a, b in zip(labelling, student, strict=True)]
    assert found.divergence == pytest.approx(np.mean(by_row))
    assert measure_fidelity(student, student).divergence == 0


def test_fidelity_is_finite_where_the_student_rules_out_a_class():
    assert np.isfinite(measure_fidelity(np.full((3, 2), 0.5), np.eye(2)[[0, 1, 0]]).divergence)
