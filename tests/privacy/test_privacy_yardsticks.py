"""Utility beside leakage: against scikit-learn, leakage and guarantee as they were found."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from knowledge_recycling.privacy.metrics import Trials, aggregate
from knowledge_recycling.privacy.yardsticks import About, mean_utility, random_guess, yardstick


def answers(seed: int, skill: float = 1.0, targets: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Two-class logits [S,P,2] of which about four in five are right, and labels [P]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=200)
    difficulty = rng.normal(size=200)
    skills = skill + 0.3 * rng.normal(size=(targets, 1))
    confidence = skills + difficulty + rng.normal(size=(targets, 200)) / 2
    logits = np.zeros((targets, 200, 2))
    logits[:, np.arange(200), labels] = confidence
    return logits, labels


def test_utility_is_the_mean_of_that_of_scikit_learn() -> None:
    logits, labels = answers(0)
    accuracy, auroc = mean_utility(logits, labels)
    expected = [accuracy_score(labels, each.argmax(1)) for each in logits]
    assert accuracy.value == pytest.approx(np.mean(expected))
    margins = logits[..., 1] - logits[..., 0]
    expected = [roc_auc_score(labels, each) for each in margins]
    assert auroc.value == pytest.approx(np.mean(expected))
    assert accuracy.low < accuracy.value < accuracy.high


def test_a_row_joins_utility_leakage_and_guarantee() -> None:
    rng = np.random.default_rng(0)
    members = rng.random((8, 400)) < 0.5
    found = aggregate([Trials(rng.normal(size=400) + own, own) for own in members])
    row = yardstick("a", *answers(0), found, About(epsilon=2.0, delta=0.1))
    assert (row.name, row.epsilon, row.delta, row.distinct_images) == ("a", 2.0, 0.1, None)
    assert row.auc == found.auc
    assert row.tpr == dict(found.detections)[0.01]
    assert row.aop == pytest.approx(row.accuracy.value / (2 * found.auc.value) ** 2)


def test_guessing_leaks_nothing_and_is_worth_nothing() -> None:
    row = random_guess(5)
    assert [row[name] for name in ("accuracy", "auroc", "auc", "aop")] == [0.2, 0.5, 0.5, 0.2]
    assert row["tpr"] == 0.01, "as often as any image"
