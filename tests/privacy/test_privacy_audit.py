"""The battery of attacks on made-up shadows whose leakage is known, group by group."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from knowledge_recycling.config import Facts, validate
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.privacy import audit
from knowledge_recycling.privacy.audit import (
    ATTACKS,
    PRIMARY,
    AuditConfig,
    Shadows,
    as_result,
    attack_shadows,
    by_class,
    canary_epsilon,
    overfitted,
    standardised,
    vulnerability,
)
from knowledge_recycling.privacy.many import half_memberships
from knowledge_recycling.privacy.metrics import Aggregate

IMAGES, CANARIES, POPULATION, NUM_SHADOWS = 400, 60, 100, 16
KINDS = np.repeat([0, 1, -1], [IMAGES, CANARIES, POPULATION])


def shadows(gain: float, canary_gain: float) -> Shadows:
    """Two-class logits: a member's label gets `gain` more, in standard deviations of the noise."""
    rng = np.random.default_rng(1)
    members = half_memberships(NUM_SHADOWS, IMAGES + CANARIES, rng)
    members = np.concatenate([members, np.zeros((NUM_SHADOWS, POPULATION), bool)], axis=1)
    labels = rng.integers(2, size=len(KINDS))
    difficulty = rng.normal(2.0, 2.0, len(KINDS))
    gains = np.where(KINDS == 1, canary_gain, gain) * members
    confidence = difficulty + gains + rng.normal(size=members.shape)
    logits = np.zeros((NUM_SHADOWS, 1, len(KINDS), 2))
    rows = np.arange(len(KINDS))
    logits[:, 0, rows, labels] = confidence / 2
    logits[:, 0, rows, 1 - labels] = -confidence / 2
    return Shadows(logits, members, labels, KINDS)


def covers(found: Aggregate, value: float) -> bool:
    return found.auc.low <= value <= found.auc.high


def test_nothing_is_found_where_nothing_leaks() -> None:
    found = attack_shadows(shadows(0.0, 0.0)).found["images"]
    assert found.keys() == ATTACKS.keys()
    missed = [name for name, each in found.items() if not covers(each, 0.5)]
    assert len(missed) <= 1, "of 11 attacks, each interval covers with 95 %"


def test_leakage_of_canaries_alone_shows_in_their_group_alone() -> None:
    found = attack_shadows(shadows(0.0, 3.0)).found
    assert set(found) == {"images", "mislabelled"}
    assert found["mislabelled"][PRIMARY].auc.low > 0.9
    assert covers(found["images"][PRIMARY], 0.5)


def test_the_most_vulnerable_images_are_those_that_leak() -> None:
    seen = shadows(0.0, 3.0)
    ranks = vulnerability(seen)
    assert ranks.shape == (IMAGES + CANARIES,)
    most = np.argsort(-ranks)[: CANARIES // 2]
    assert np.mean(KINDS[most] == 1) > 0.9


def test_classifiers_that_learn_by_heart_are_caught(make_set: Callable[..., ImageSet]) -> None:
    rng = np.random.default_rng(0)
    pool = make_set(120, num_classes=2)
    noise = ImageSet(
        rng.integers(256, size=pool.images.shape, dtype=np.uint8), pool.labels, pool.class_names
    )
    population = noise.subset(np.arange(20))
    kinds = np.repeat([0, 1], [100, 20])
    learnt, accuracy = overfitted(noise, kinds, population, 8, seed=0)
    assert learnt.logits.shape == (8, 1, 140, 2)
    assert accuracy > 0.95
    assert (learnt.members.sum(axis=1) == 60).all()
    assert not learnt.members[:, 120:].any()
    np.testing.assert_array_equal(learnt.kinds, np.repeat([0, 1, -1], [100, 20, 20]))
    np.testing.assert_array_equal(learnt.labels[120:], population.labels)
    found = attack_shadows(learnt).found["images"]
    assert found["loss"].auc.low > 0.8


def test_images_that_differ_in_details_alone_are_learnt_by_heart_too(
    make_set: Callable[..., ImageSet],
) -> None:
    rng = np.random.default_rng(0)
    template = make_set(120, num_classes=2)
    details = rng.integers(-3, 4, size=template.images.shape)
    pool = ImageSet((60 + details).astype(np.uint8), template.labels, template.class_names)
    _, accuracy = overfitted(pool, np.zeros(120, int), pool.subset(np.arange(20)), 8, seed=0)
    assert accuracy > 0.95


def test_each_pixel_is_standardised_over_the_images() -> None:
    images = torch.randn(50, 3, 4, 5) * torch.linspace(0.1, 2, 60).view(3, 4, 5) + 7
    images[:, 0, 0, 0] = 1.0  # the same in all
    result = standardised(images)
    expected = StandardScaler().fit_transform(images.flatten(1).double().numpy())
    # scikit-learn divides by the deviation of these images, torch by that of their population
    expected *= np.sqrt(49 / 50)
    np.testing.assert_allclose(result.flatten(1).numpy(), expected, atol=1e-4)


def test_of_a_large_pool_some_images_are_learnt_by_heart(
    make_set: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_SANITY", 30)
    pool = make_set(120, num_classes=2)
    learnt, _ = overfitted(pool, np.arange(120), pool.subset(np.arange(20)), 8, seed=0)
    assert learnt.logits.shape == (8, 1, 50, 2)
    assert (learnt.members.sum(axis=1) == 15).all()
    assert learnt.kinds[:2].tolist() == [0, 4]
    assert learnt.kinds[29] == 119


def test_result_holds_the_intervals_under_the_keys_of_their_values() -> None:
    attack = as_result(attack_shadows(shadows(1.0, 1.0)).found["images"])[PRIMARY]
    assert attack["auc"] > 0.6
    assert set(attack["tpr_at_fpr"]) == {0.1, 0.01, 0.001}
    for fpr, rate in attack["tpr_at_fpr"].items():
        assert (rate is not None) == (str(fpr) in attack["ci95"])
    low, high = attack["ci95"]["auc"]
    assert low < attack["auc"] < high


@pytest.mark.parametrize("shadows", [1, 7])
def test_too_few_shadows_are_refused_with_the_recipe(shadows: int) -> None:
    with pytest.raises(RecipeError, match="at least 8"):
        validate(AuditConfig, {"shadows": shadows})


def test_canaries_follow_the_size_of_the_set(make_facts: Callable[..., Facts]) -> None:
    def derived(num_train: int) -> int | None:
        return AuditConfig().completed(make_facts(num_train=num_train)).canaries

    assert (derived(500), derived(100_000)) == (25, 100)


def test_classes_are_attacked_apart_and_canaries_left_out() -> None:
    seen = shadows(0.0, 3.0)
    judged = seen.kinds >= 0
    primary, kinds = attack_shadows(seen).primary, seen.kinds[judged]
    labels = np.where(np.arange(len(kinds)) < 3, 2, seen.labels[judged])
    first, second, rare = by_class(primary, kinds, labels, 3)
    assert first is not None
    assert second is not None
    assert rare is None, "three images tell nothing"
    assert max(first["auc"], second["auc"]) < 0.6, "the canaries leak, the images do not"


@pytest.mark.parametrize(("gain", "least", "most"), [(0.0, 0.0, 0.0), (4.0, 0.5, 10.0)])
def test_canaries_bound_epsilon_only_where_they_leak(
    gain: float, least: float, most: float
) -> None:
    seen = shadows(0.0, gain)
    battery, kinds = attack_shadows(seen), seen.kinds[seen.kinds >= 0]
    bound = canary_epsilon(battery.primary, kinds, 1e-4)
    assert bound is not None
    assert least <= bound <= most
    assert canary_epsilon(battery.primary, np.zeros_like(kinds), 1e-4) is None
