"""Attacks against slow loops written from the papers, ART, SciPy and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import special, stats
from simulated import simulate
from sklearn.metrics import log_loss

from knowledge_recycling.errors import DataError
from knowledge_recycling.privacy.attacks import (
    generator_loss,
    label_only,
    lira,
    rmia,
    synthetic,
    threshold,
    trained,
)
from knowledge_recycling.privacy.signals import Signals, scaled_logits

types = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def probability(logits: Any) -> list[float]:
    peak = max(map(float, logits))
    parts = [math.exp(float(each) - peak) for each in logits]
    return [part / sum(parts) for part in parts]


def confidence(logits: Any, label: int) -> float:
    """Carlini's scaled logit in the naive way."""
    chance = probability(logits)[label]
    return math.log(chance / (1 - chance))


def lira_loop(signals: Signals, config: lira.Config) -> list[float]:
    """Algorithm 1, image by image; normal densities by SciPy."""
    shadows, queries, images = signals.shadow_logits.shape[:3]
    seen = [
        [[confidence(signals.shadow_logits[s, q, n], signals.labels[n]) for q in range(queries)]
         for s in range(shadows)]
        for n in range(images)
    ]  # fmt: skip
    groups: dict[bool, list[Any]] = {
        side: [
            np.array([seen[n][s] for s in range(shadows) if signals.shadow_members[s, n] == side])
            for n in range(images)
        ]
        for side in (True, False)
    }
    covariances = {side: covariances_of(groups[side], config) for side in groups}
    scores = []
    for n in range(images):
        point = np.array(
            [confidence(signals.logits[q, n], signals.labels[n]) for q in range(queries)]
        )
        ways = {
            side: stats.multivariate_normal(groups[side][n].mean(axis=0), covariances[side][n])
            for side in groups
        }
        if config.mode == "online":
            scores.append(ways[True].logpdf(point) - ways[False].logpdf(point))
        else:  # the best linear statistic for a shift of all queries alike
            inverse = np.linalg.inv(ways[False].cov)
            stds = np.sqrt(np.diag(ways[False].cov))
            weight = inverse @ stds
            scores.append(weight @ (point - ways[False].mean) / math.sqrt(stds @ weight))
    return scores


def covariances_of(groups: list[Any], config: lira.Config) -> list[Any]:
    freedom = sum(len(group) - 1 for group in groups)
    queries = groups[0].shape[1]
    total = sum(((group - group.mean(axis=0)) ** 2).sum(axis=0) for group in groups)
    stds = [
        np.sqrt(total / freedom) if config.variance == "fixed" else group.std(axis=0, ddof=1)
        for group in groups
    ]
    correlation = np.zeros((queries, queries))
    for group, std in zip(groups, stds, strict=True):
        for row in (group - group.mean(axis=0)) / std:
            correlation += np.outer(row, row) / freedom
    if config.queries == "independent":
        correlation = np.eye(queries)
    else:
        correlation = (correlation + 1e-6 * np.eye(queries)) / (1 + 1e-6)
    return [np.outer(std, std) * correlation for std in stds]


@types
@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["fixed", "per_image"])
@pytest.mark.parametrize("queries", ["independent", "joint"])
def test_lira_equals_a_slow_loop(dtype: Any, mode: Any, variance: Any, queries: Any) -> None:
    signals = simulate(images=40, population=4, shadows=10, dtype=dtype).signals
    config = lira.Config(mode=mode, variance=variance, queries=queries)
    judged = ~signals.population  # images never IN have no IN distribution
    kept = Signals(
        labels=signals.labels[judged],
        logits=signals.logits[:, judged],
        shadow_logits=signals.shadow_logits[:, :, judged],
        shadow_members=signals.shadow_members[:, judged],
    )
    np.testing.assert_allclose(lira.score(kept, config), lira_loop(kept, config), atol=1e-6)


def test_offline_lira_orders_images_as_equation_4_of_the_paper() -> None:
    signals = simulate(queries=1, population=0).signals
    config = lira.Config(mode="offline", variance="per_image")
    scores, expected = lira.score(signals, config), []
    for n, label in enumerate(signals.labels):
        outside = signals.shadow_logits[~signals.shadow_members[:, n], 0, n]
        values = [confidence(each, label) for each in outside]
        normal = stats.norm(np.mean(values), np.std(values, ddof=1))
        expected.append(normal.cdf(confidence(signals.logits[0, n], label)))
    np.testing.assert_allclose(stats.norm.cdf(scores), expected, atol=1e-6)


def rmia_loop(signals: Signals, config: rmia.Config) -> list[float]:
    """Equations 2 to 4, pair by pair, with a vote over the queries."""
    queries, images = signals.logits.shape[:2]

    def chance(logits: Any, n: int) -> float:
        return probability(logits[n])[signals.labels[n]]

    def ratio(q: int, n: int) -> float:
        sides: dict[bool, list[float]] = {True: [], False: []}
        for s, logits in enumerate(signals.shadow_logits):
            sides[bool(signals.shadow_members[s, n])].append(chance(logits[q], n))
        expected = np.mean(sides[False])
        if not signals.population[n] and config.mode == "online":
            expected = (np.mean(sides[True]) + np.mean(sides[False])) / 2
        elif not signals.population[n]:
            expected = ((1 + config.offline_a) * expected + (1 - config.offline_a)) / 2
        return chance(signals.logits[q], n) / float(expected)

    others = [ratio(0, n) for n in range(images) if signals.population[n]]
    scores = []
    for n in range(images):
        own = [ratio(q, n) for q in range(queries)]
        wins = [sum(r / z >= config.gamma for r in own) > queries / 2 for z in others]
        scores.append(np.mean(wins))
    return scores


@types
@pytest.mark.parametrize("queries", [1, 2, 3])
@pytest.mark.parametrize(
    "given", [{}, {"gamma": 1.3}, {"mode": "offline"}, {"mode": "offline", "offline_a": 1.0}]
)
def test_rmia_equals_a_slow_loop(dtype: Any, queries: int, given: dict[str, Any]) -> None:
    signals = simulate(images=60, population=20, shadows=8, queries=queries, dtype=dtype).signals
    config = rmia.Config(**given)
    judged = ~signals.population  # an image of the population ties with itself, up to rounding
    expected = np.array(rmia_loop(signals, config))
    np.testing.assert_allclose(rmia.score(signals, config)[judged], expected[judged], atol=1e-6)


def test_rmia_refuses_an_empty_population() -> None:
    signals = simulate(population=0).signals
    with pytest.raises(DataError, match="population is empty"):
        rmia.score(signals, rmia.Config())


def test_threshold_scores_equal_scipy_and_scikit_learn() -> None:
    signals = simulate(queries=1).signals
    chances = special.softmax(signals.logits[0], axis=1)
    rows = np.arange(len(chances))
    own = chances[rows, signals.labels]
    given = np.eye(chances.shape[1])[signals.labels]
    song = -np.sum(  # equation 9
        given * (1 - chances) * np.log(chances) + (1 - given) * chances * np.log(1 - chances),
        axis=1,
    )
    expected = {
        "loss": np.log(own),
        "confidence": special.logit(chances.max(axis=1)),
        "entropy": -stats.entropy(chances, axis=1),
        "modified_entropy": -song,
    }
    for name, values in expected.items():
        scores = threshold.score(signals, threshold.Config(signal=name))
        np.testing.assert_allclose(scores, values, atol=1e-12)
    losses = threshold.score(signals, threshold.Config())
    labels = np.arange(chances.shape[1])
    assert -losses.mean() == pytest.approx(log_loss(signals.labels, chances, labels=labels))


@pytest.mark.parametrize("signal", ["loss", "confidence", "entropy", "modified_entropy"])
def test_very_sure_predictions_are_still_told_apart(signal: Any) -> None:
    logits = np.array([[[100.0, 0.0], [200.0, 0.0], [400.0, 0.0]]])
    signals = Signals(labels=np.zeros(3, dtype=np.int64), logits=logits)
    scores = threshold.score(signals, threshold.Config(signal=signal))
    assert scores[0] < scores[1] < scores[2]


def test_scaled_logits_equal_the_definition_and_shift_with_nothing() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 7, 4))
    chances = special.softmax(logits, axis=-1)
    np.testing.assert_allclose(scaled_logits(logits), special.logit(chances), atol=1e-12)
    np.testing.assert_allclose(scaled_logits(logits + 500), scaled_logits(logits), atol=1e-9)
    assert np.isfinite(scaled_logits(np.array([3e4, -3e4, 0.0]))).all()
    tied = scaled_logits(np.zeros(4))
    np.testing.assert_allclose(tied, np.full(4, special.logit(0.25)))


def test_a_threshold_per_class_has_the_same_false_positives_in_each_class() -> None:
    case = simulate(images=4000, shadows=8, queries=1)
    signals = case.signals
    shift = 3.0 * signals.labels[:, None] * np.eye(4)[signals.labels]  # later classes are easier
    easier = Signals(
        labels=signals.labels,
        logits=signals.logits + shift,
        shadow_logits=signals.shadow_logits + shift,
        shadow_members=signals.shadow_members,
    )
    scores = threshold.score(easier, threshold.Config(per_class=True))
    common = threshold.score(easier, threshold.Config())
    outside = ~case.members
    rates = [np.mean(scores[outside & (signals.labels == k)] > 0.9) for k in range(4)]
    np.testing.assert_allclose(rates, 0.1, atol=0.06)
    cut = np.quantile(common[outside], 0.9)
    assert np.mean(common[outside & (signals.labels == 0)] > cut) < 0.01
    ordered = np.argsort(common[signals.labels == 0])
    assert np.all(np.diff(scores[signals.labels == 0][ordered]) > 0)  # strictly, to both ends


def test_the_trained_attack_learns_from_shadows_alone() -> None:
    case = simulate()
    signals = case.signals
    config = trained.Config()
    turned = Signals(
        labels=signals.labels,
        logits=signals.logits,
        shadow_logits=signals.shadow_logits,
        shadow_members=~signals.shadow_members,
    )
    np.testing.assert_allclose(
        trained.score(turned, config), -trained.score(signals, config), atol=1e-2
    )


def test_label_only_sees_nothing_but_the_predicted_class() -> None:
    signals = simulate().signals
    hardened = np.eye(4)[signals.logits.argmax(axis=-1)]
    config = label_only.Config()
    expected = [
        sum(int(np.argmax(query[n]) == label) for query in signals.logits) / 3
        for n, label in enumerate(signals.labels)
    ]
    np.testing.assert_allclose(label_only.score(signals, config), expected)
    seen = Signals(labels=signals.labels, logits=hardened)
    np.testing.assert_array_equal(label_only.score(seen, config), expected)


def test_a_generator_loss_is_compared_with_that_of_out_shadows() -> None:
    signals = simulate(images=50, population=0).signals
    expected = [
        np.mean(signals.shadow_losses[~signals.shadow_members[:, n], n]) - signals.losses[n]
        for n in range(50)
    ]
    config = generator_loss.Config()
    np.testing.assert_allclose(generator_loss.score(signals, config), expected)


def features_only(images: Any, synthetic_images: Any, reference: Any) -> Signals:
    return Signals(
        labels=np.zeros(len(images), dtype=np.int64),
        features=images,
        synthetic_features=synthetic_images,
        reference_features=reference,
    )


def test_distances_are_those_of_a_slow_loop_and_a_copy_is_at_zero() -> None:
    rng = np.random.default_rng(0)
    images, synthetic_images, reference = (rng.normal(size=(n, 5)) * 9 for n in (30, 40, 50))
    synthetic_images[3] = images[7]
    scale = reference.std(axis=0)

    def nearest(image: Any, others: Any) -> float:
        return float(np.mean(sorted(math.dist(image / scale, each / scale) for each in others)[:2]))

    signals = features_only(images, synthetic_images, reference)
    scores = synthetic.score(signals, synthetic.Config(neighbours=2))
    expected = [nearest(each, reference) - nearest(each, synthetic_images) for each in images]
    np.testing.assert_allclose(scores, expected, atol=1e-9)
    copies = synthetic.neighbour_distances(images, synthetic_images, 1)
    assert copies[7, 0] == 0


def test_kernel_density_equals_a_sum_of_normal_densities() -> None:
    rng = np.random.default_rng(0)
    images, synthetic_images, reference = (rng.normal(size=(n, 2)) for n in (20, 30, 40))
    scale = reference.std(axis=0)

    def density(image: Any, others: Any) -> float:
        width = len(others) ** (-1 / 6)  # Scott's rule in 2 dimensions
        normal = stats.multivariate_normal(image / scale, width**2 * np.eye(2))
        return float(np.mean(normal.pdf(others / scale)))

    signals = features_only(images, synthetic_images, reference)
    scores = synthetic.score(signals, synthetic.Config(method="kernel_density"))
    expected = [np.log(density(x, synthetic_images) / density(x, reference)) for x in images]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_density_ratios_come_near_the_true_ratio() -> None:
    rng = np.random.default_rng(0)
    images = rng.uniform(-1.5, 1.5, (200, 2))  # in the tails there is next to nothing to count
    synthetic_images, reference = rng.normal(0.5, 1, (4000, 2)), rng.normal(size=(4000, 2))
    true = stats.norm.logpdf(images, 0.5).sum(axis=1) - stats.norm.logpdf(images).sum(axis=1)
    signals = features_only(images, synthetic_images, reference)
    for method, neighbours in (("knn_density", 100), ("kernel_density", 1)):
        config = synthetic.Config(method=method, neighbours=neighbours)
        assert np.corrcoef(synthetic.score(signals, config), true)[0, 1] > 0.9


def test_memory_of_the_distances_is_bounded() -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    images, others = rng.normal(size=(3000, 4)), rng.normal(size=(20_000, 4))
    synthetic.neighbour_distances(images[:2], others, 1)
    tracemalloc.start()
    synthetic.neighbour_distances(images, others, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 20_000 * 8 / 10  # the whole matrix would be 480 MB


def test_fewer_references_than_neighbours_are_an_error() -> None:
    with pytest.raises(DataError, match="fewer images than neighbours"):
        synthetic.neighbour_distances(np.zeros((1, 2)), np.zeros((2, 2)), 3)


@pytest.mark.slow  # importing ART takes seconds
def test_the_gap_attack_equals_that_of_art() -> None:
    from art.attacks.inference.membership_inference import LabelOnlyGapAttack
    from art.estimators.classification import BlackBoxClassifier

    signals = simulate(queries=1).signals
    rows = np.arange(len(signals.labels), dtype=np.float32)[:, None]

    def predict(asked: Any) -> Any:
        return special.softmax(signals.logits[0][asked[:, 0].astype(np.int64)], axis=1)

    classifier = BlackBoxClassifier(predict, input_shape=(1,), nb_classes=4)
    inferred = LabelOnlyGapAttack(classifier).infer(rows, signals.labels)
    np.testing.assert_array_equal(label_only.score(signals, label_only.Config()), inferred)
