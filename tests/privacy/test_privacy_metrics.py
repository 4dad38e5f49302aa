"""Metrics against scikit-learn, ART, SciPy and closed forms; intervals against simulated truth."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from simulated import simulate
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from knowledge_recycling.errors import DataError
from knowledge_recycling.privacy.attacks import lira
from knowledge_recycling.privacy.many import half_memberships
from knowledge_recycling.privacy.metrics import (
    FPRS,
    Trials,
    accuracy_over_privacy,
    aggregate,
    attack_each,
    auc,
    closer_to_members,
    jackknifed,
    leakage_by_class,
    left_out_targets,
    measure_leakage,
    proportion,
    resolvable,
    roc,
    tpr_at,
)


def gaussian(shift: float, count: int, seed: int) -> tuple[Any, Any]:
    """Returns scores of as many members, N(shift, 1), as others, N(0, 1)."""
    members = np.arange(2 * count) < count
    return np.random.default_rng(seed).normal(size=2 * count) + shift * members, members


def test_areas_and_rates_equal_scikit_learn_with_ties() -> None:
    scores, members = gaussian(1.0, 300, 0)
    scores = np.round(scores, 1)
    leakage = measure_leakage(scores, members)
    assert leakage.auc.value == pytest.approx(roc_auc_score(members, scores))
    best = max(balanced_accuracy_score(members, scores >= cut) for cut in np.unique(scores))
    assert leakage.balanced_accuracy == pytest.approx(best)
    for fpr in (0.0, 0.013, 0.5, 1.0):
        cuts = [cut for cut in np.unique(scores) if np.mean(scores[~members] >= cut) <= fpr]
        expected = np.mean(scores[members] >= min(cuts)) if cuts else 0.0
        assert tpr_at(roc(scores, members), fpr) == pytest.approx(expected)


def test_gaussians_give_the_closed_form() -> None:
    scores, members = gaussian(1.5, 200_000, 1)
    leakage = measure_leakage(scores, members)
    assert leakage.auc.value == pytest.approx(stats.norm.cdf(1.5 / np.sqrt(2)), abs=0.003)
    assert leakage.balanced_accuracy == pytest.approx(stats.norm.cdf(0.75), abs=0.003)
    known = leakage.roc.fpr >= 1e-3
    true = stats.norm.sf(stats.norm.isf(leakage.roc.fpr) - 1.5)
    np.testing.assert_allclose(leakage.roc.tpr[known], true[known], atol=0.01)
    for detection in leakage.detections:
        truth = stats.norm.sf(stats.norm.isf(detection.fpr) - 1.5)
        assert detection.tpr is not None
        assert detection.tpr.value == pytest.approx(truth, abs=0.01)


def test_without_members_the_true_rate_is_in_its_interval_as_often_as_stated() -> None:
    inside = dict.fromkeys((0.1, 0.01), 0)
    for seed in range(250):
        scores, members = gaussian(0.0, 1000, seed)
        for detection in measure_leakage(scores, members).detections[:2]:
            # members are like the others: at any threshold both rates are the same in truth
            cut = np.sort(scores[~members])[-round(detection.achieved_fpr.value * 1000)]
            truth = stats.norm.sf(cut)
            inside[detection.fpr] += detection.tpr.low <= truth <= detection.tpr.high
    for hits in inside.values():
        assert stats.binomtest(hits, 250, 0.95).proportion_ci(0.999).high >= 0.95


def test_the_interval_of_the_area_holds_the_truth_as_often_as_stated() -> None:
    for shift in (0.0, 1.0, 2.5):
        truth = stats.norm.cdf(shift / np.sqrt(2))
        intervals = [auc(*gaussian(shift, 60, seed)) for seed in range(300)]
        hits = sum(each.low <= truth <= each.high for each in intervals)
        assert stats.binomtest(hits, 300, 0.95).pvalue > 1e-3


def test_the_interval_of_the_area_equals_delongs_variance() -> None:
    scores, members = gaussian(1.0, 40, 3)
    wins = (scores[members][:, None] > scores[~members]).astype(float)
    variance = wins.mean(axis=1).var(ddof=1) / 40 + wins.mean(axis=0).var(ddof=1) / 40
    area = auc(scores, members)
    assert area.value == pytest.approx(wins.mean())
    slope = area.value * (1 - area.value)
    width = (np.log(area.high / (1 - area.high)) - np.log(area.low / (1 - area.low))) * slope
    assert width == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-6)


def test_perfect_order_is_not_taken_as_certain() -> None:
    scores, members = np.arange(20.0), np.arange(20) >= 10
    assert auc(scores, members).low == pytest.approx(0.025 ** (1 / 10))
    assert auc(-scores, members).high == pytest.approx(1 - 0.025 ** (1 / 10))


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (3, 10), (9, 9), (41, 1000)])
def test_rates_have_clopper_pearson_intervals(hits: int, count: int) -> None:
    interval = proportion(hits, count)
    known = stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert (interval.low, interval.high) == pytest.approx((known.low, known.high))


@pytest.mark.parametrize(("others", "shown"), [(99, 0), (100, 1), (999, 1), (1000, 2), (10_000, 3)])
def test_a_rate_that_so_few_images_cannot_tell_is_none(others: int, shown: int) -> None:
    assert [resolvable(fpr, others) for fpr in FPRS] == [each < shown for each in range(3)]
    members = np.arange(others + 5) < 5
    leakage = measure_leakage(np.random.default_rng(0).normal(size=others + 5), members)
    assert [each.tpr is not None for each in leakage.detections] == [i < shown for i in range(3)]


@given(st.integers(0, 10**6), st.sampled_from([np.exp, lambda x: 5 * x - 3, np.arctan]))
def test_only_the_order_of_the_scores_matters(seed: int, rising: Any) -> None:
    scores, members = gaussian(0.7, 30, seed)
    first, second = (measure_leakage(each, members) for each in (scores, rising(scores)))
    assert first.auc == second.auc
    assert first.detections == second.detections
    turned = auc(-scores, members)
    assert turned.value == pytest.approx(1 - first.auc.value)
    assert (turned.low, turned.high) == pytest.approx((1 - first.auc.high, 1 - first.auc.low))


def test_accuracy_over_privacy_forgives_areas_below_one_half() -> None:
    assert accuracy_over_privacy(0.8, 0.3) == 0.8
    assert accuracy_over_privacy(0.8, 1.0) == pytest.approx(0.2)


def test_leakage_by_class_is_that_of_the_class_alone() -> None:
    scores, members = gaussian(1.0, 100, 0)
    labels = np.arange(200) % 3
    labels[:3] = 3  # 3 members, no others
    by_class = leakage_by_class(scores, members, labels, 5)
    assert by_class[3] is None
    assert by_class[4] is None
    for k in range(3):
        expected = roc_auc_score(members[labels == k], scores[labels == k])
        assert by_class[k].auc.value == pytest.approx(expected)


def test_what_cannot_be_measured_is_an_error() -> None:
    scores = np.arange(4.0)
    with pytest.raises(DataError, match="cannot be measured"):
        measure_leakage(scores, np.array([True, False, False, False]))
    with pytest.raises(DataError, match="not finite"):
        measure_leakage(np.array([0, 1, np.nan, 2]), np.array([True, False, False, True]))
    with pytest.raises(DataError, match="no spread"):
        aggregate([Trials(scores, scores > 1)])


def test_synthetic_images_closer_to_members_are_counted_ties_as_half() -> None:
    share = closer_to_members(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 3.0, 9.0]))
    assert share.value == 5 / 8
    assert share.low < 0.5 < share.high


def test_each_shadow_is_once_the_target_of_the_others() -> None:
    signals = simulate(shadows=9).signals
    logits, members = signals.shadow_logits, signals.shadow_members
    targets = list(left_out_targets(logits, members, signals.labels, signals.population))
    assert len(targets) == 9
    for s, target in enumerate(targets):
        others = [other for other in range(9) if other != s]
        np.testing.assert_array_equal(target.signals.logits, logits[s])
        np.testing.assert_array_equal(target.members, members[s])
        np.testing.assert_array_equal(target.signals.shadow_logits, logits[others])
        np.testing.assert_array_equal(target.signals.shadow_members, members[others])
    wrong = members | signals.population
    with pytest.raises(DataError, match="trained on an image of the population"):
        next(left_out_targets(logits, wrong, signals.labels, signals.population))


def test_leaving_one_out_finds_members_and_finds_none_where_there_are_none() -> None:
    config, areas = lira.Config(), []
    members = half_memberships(12, 300, np.random.default_rng(0))
    for gain in (0.0, 2.0):
        signals = simulate(
            gain=gain, shadows=11, images=300, population=0, memberships=members
        ).signals
        logits = np.concatenate([signals.logits[None], signals.shadow_logits])
        targets = left_out_targets(logits, members, signals.labels)
        areas.append(aggregate(attack_each(targets, lambda seen: lira.score(seen, config))).auc)
    assert areas[0].low < 0.5 < areas[0].high < 0.54
    assert areas[0].high > 0.45
    assert areas[1].low > 0.7


def clustered(spread: float, targets: int, count: int, seed: int) -> list[Trials]:
    """Returns trials of targets that leak more or less than each other, by `spread`."""
    rng = np.random.default_rng(seed)
    members = np.arange(2 * count) < count
    shifts = rng.normal(1.0, spread, targets)
    return [Trials(rng.normal(size=2 * count) + shift * members, members) for shift in shifts]


def test_the_aggregate_is_the_roc_of_all_scores_together() -> None:
    trials = clustered(0.5, 6, 300, 0)
    scores = np.concatenate([each.scores for each in trials])
    members = np.concatenate([each.members for each in trials])
    whole, single = aggregate(trials), measure_leakage(scores, members)
    assert whole.targets == 6
    assert whole.auc.value == pytest.approx(single.auc.value)
    np.testing.assert_allclose(whole.roc.tpr, single.roc.tpr)
    assert [each is None for _, each in whole.detections] == [False, False, True]
    assert whole.detections[1][1].value == pytest.approx(single.detections[1].tpr.value)
    assert np.all(whole.roc.low <= whole.roc.tpr)
    assert np.all(whole.roc.tpr <= whole.roc.high)


def test_intervals_of_the_aggregate_allow_for_differences_between_targets() -> None:
    rng = np.random.default_rng(5)
    shifts = rng.normal(1.0, 0.5, 100_000)
    truth = np.mean(stats.norm.cdf(shifts / np.sqrt(2)))
    hits, naive = 0, 0
    for seed in range(100):
        trials = clustered(0.5, 8, 100, seed)
        area = aggregate(trials).auc
        hits += area.low <= truth <= area.high
        scores = np.concatenate([each.scores for each in trials])
        single = auc(scores, np.concatenate([each.members for each in trials]))
        naive += single.low <= truth <= single.high
    assert stats.binomtest(hits, 100, 0.95).pvalue > 1e-3
    assert naive / 100 < 0.7  # as if all images were of one target


def test_results_can_be_written_as_json() -> None:
    leakage = measure_leakage(*gaussian(1.0, 60, 0))
    json.dumps(asdict(leakage), default=lambda array: array.tolist(), allow_nan=False)


@pytest.mark.slow  # importing ART takes seconds
def test_true_positive_rates_equal_those_of_art() -> None:
    from art.metrics.privacy import get_roc_for_multi_fprs

    scores, members = gaussian(1.0, 20_000, 0)
    _, expected, _ = get_roc_for_multi_fprs(scores, members, np.array(FPRS))
    found = [each.tpr.value for each in measure_leakage(scores, members).detections]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_intervals_over_targets_cover_where_images_differ_in_difficulty_alone() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(60):
        members = half_memberships(8, 200, rng)
        scores = rng.normal(size=200) + 0.3 * rng.normal(size=(8, 200))
        found = aggregate(
            [Trials(own, inside) for own, inside in zip(scores, members, strict=True)]
        )
        covered.append(found.auc.low <= 0.5 <= found.auc.high)
    assert np.mean(covered) > 0.93, "jackknife over the targets alone covers about two thirds"


def test_intervals_of_a_mean_over_targets_and_images_are_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    values = 0.5 + 0.05 * rng.normal(size=(9, 1)) + 0.02 * rng.normal(size=20)

    def mean(targets: Any, images: Any) -> Any:
        return np.array([values[np.ix_(targets, images)].mean()])

    (found,) = jackknifed(mean, 9, 20)
    variance = values.mean(1).var(ddof=1) / 9 + values.mean(0).var(ddof=1) / 20
    reach = stats.t.ppf(0.975, 8) * np.sqrt(variance)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach))
