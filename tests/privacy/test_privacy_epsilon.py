"""Bounds of epsilon on mechanisms whose epsilon is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from knowledge_recycling.privacy.epsilon import (
    Guesses,
    best_threshold,
    epsilon_from_rates,
    guess,
    one_run_epsilon,
    one_run_p_value,
    several_runs_epsilon,
)


def randomised_response(epsilon: float, count: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Returns answers and truths: an answer is true with probability e^eps / (1 + e^eps)."""
    truths = rng.random(count) < 0.5
    honest = rng.random(count) < 1 / (1 + math.exp(-epsilon))
    return np.where(honest, truths, ~truths).astype(float), truths


def delta_of_gaussian(epsilon: float, sensitivity: float) -> float:
    """Balle & Wang 2018 (arXiv 1805.06530, theorem 8), noise 1."""
    near, far = sensitivity / 2 - epsilon / sensitivity, -sensitivity / 2 - epsilon / sensitivity
    return float(stats.norm.cdf(near) - math.exp(epsilon) * stats.norm.cdf(far))


def epsilon_of_gaussian(delta: float, sensitivity: float) -> float:
    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        more = delta_of_gaussian(middle, sensitivity) > delta
        low, high = (middle, high) if more else (low, middle)
    return high


def counts(scores: Any, members: Any, threshold: float) -> tuple[int, int, int, int]:
    said = scores >= threshold
    return (
        int(said[members].sum()), int(members.sum()),
        int(said[~members].sum()), int((~members).sum()),
    )  # fmt: skip


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_bounds_from_rates_stay_below_the_truth_as_often_as_stated(epsilon: float) -> None:
    rng = np.random.default_rng(0)
    bounds = []
    for _ in range(400):
        answers, truths = randomised_response(epsilon, 600, rng)
        bounds.append(epsilon_from_rates(*counts(answers, truths, 0.5)))
    above = sum(bound > epsilon for bound in bounds)
    assert stats.binomtest(above, 400, 0.05).proportion_ci(0.999).low <= 0.05
    assert min(bounds) >= 0


def test_bounds_from_rates_come_near_the_truth() -> None:
    answers, truths = randomised_response(2.0, 400_000, np.random.default_rng(1))
    assert 1.95 < epsilon_from_rates(*counts(answers, truths, 0.5)) <= 2.0


def test_bounds_on_a_gaussian_mechanism_use_delta_and_other_trials() -> None:
    delta, sensitivity = 0.05, 1.5
    truth = epsilon_of_gaussian(delta, sensitivity)
    rng = np.random.default_rng(2)

    def trials(count: int) -> tuple[Any, Any]:
        members = rng.random(count) < 0.5
        return rng.normal(size=count) + sensitivity * members, members

    best = truth / sensitivity + sensitivity / 2  # the threshold that attains epsilon(delta)
    bounds = [epsilon_from_rates(*counts(*trials(800), best), delta=delta) for _ in range(300)]
    above = sum(bound > truth for bound in bounds)
    assert stats.binomtest(above, 300, 0.05).proportion_ci(0.999).low <= 0.05
    many = epsilon_from_rates(*counts(*trials(1_000_000), best), delta=delta)
    assert truth - 0.1 < many <= truth
    chosen = best_threshold(*trials(2000))
    assert epsilon_from_rates(*counts(*trials(100_000), chosen)) > 1.0


def test_bounds_from_rates_are_the_same_for_exchanged_roles() -> None:
    assert epsilon_from_rates(30, 40, 5, 50) == pytest.approx(epsilon_from_rates(45, 50, 10, 40))
    assert epsilon_from_rates(0, 10, 0, 10) == 0.0
    limit = 0.025 ** (1 / 10)
    assert epsilon_from_rates(10, 10, 0, 10) == pytest.approx(math.log(limit / (1 - limit)))


def p_value_loop(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 with the binomial distribution written out."""
    chance = 1 / (1 + math.exp(-epsilon))
    mass = [math.comb(r, k) * chance**k * (1 - chance) ** (r - k) for k in range(r + 1)]
    slopes = [sum(mass[v - i : v]) / i for i in range(1, v + 1)]
    return min(1.0, sum(mass[v:]) + 2 * m * delta * max(slopes, default=0.0))


@pytest.mark.parametrize(("m", "r", "v"), [(50, 20, 15), (40, 40, 0), (30, 10, 10), (99, 60, 31)])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-4, 0.01])
def test_p_values_equal_a_slow_loop(m: int, r: int, v: int, epsilon: float, delta: float) -> None:
    found = one_run_p_value(Guesses(m, r, v), epsilon, delta)
    assert found == pytest.approx(p_value_loop(m, r, v, epsilon, delta), rel=1e-9)


def test_the_bound_is_where_the_p_value_is_the_error() -> None:
    guesses = Guesses(1000, 100, 75)
    bound = one_run_epsilon(guesses, delta=1e-5, confidence=0.9)
    assert one_run_p_value(guesses, bound, 1e-5) == pytest.approx(0.1, abs=1e-9)
    assert one_run_epsilon(Guesses(1000, 100, 50)) == 0.0
    assert one_run_epsilon(guesses) > one_run_epsilon(guesses, delta=1e-4)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_one_run_bounds_stay_below_the_truth_as_often_as_stated(epsilon: float) -> None:
    rng = np.random.default_rng(3)
    bounds = []
    for _ in range(120):
        answers, truths = randomised_response(epsilon, 200, rng)
        bounds.append(one_run_epsilon(guess(answers, truths, positive=50, negative=50)))
    above = sum(bound > epsilon for bound in bounds)
    assert stats.binomtest(above, 120, 0.05).proportion_ci(0.999).low <= 0.05


def test_one_run_bounds_come_near_the_truth() -> None:
    rng = np.random.default_rng(4)
    answers, truths = randomised_response(1.0, 200_000, rng)
    found = one_run_epsilon(guess(answers, truths, positive=50_000, negative=50_000))
    assert 0.97 < found <= 1.0


def test_several_runs_say_less_than_one_sure_run_and_more_than_their_worst() -> None:
    good, bad = Guesses(1000, 100, 80), Guesses(1000, 100, 50)
    one = several_runs_epsilon([good])
    assert one == pytest.approx(one_run_epsilon(good, confidence=0.975))
    assert several_runs_epsilon([good, good]) == pytest.approx(one)
    assert several_runs_epsilon([good, bad]) == 0.0, "half of the runs refute nothing"
    assert 0 < several_runs_epsilon([good, good, good, Guesses(1000, 100, 70)]) < one


def test_bounds_of_runs_that_hang_together_stay_below_the_truth() -> None:
    rng = np.random.default_rng(5)
    above = 0
    for _ in range(150):
        answers, truths = randomised_response(1.0, 120, rng)
        same = guess(answers, truths, positive=30, negative=30)
        above += several_runs_epsilon([same] * 8) > 1.0
    assert stats.binomtest(above, 150, 0.05).proportion_ci(0.999).low <= 0.05
