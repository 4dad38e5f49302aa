"""What an attack's success says about epsilon: lower bounds with a stated confidence.

A bound says "leaks at least"; a bound of 0 says nothing. A mechanism is (epsilon, delta)-private
only if no attack contradicts it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from knowledge_recycling.privacy.metrics import lower_limit, upper_limit
from knowledge_recycling.privacy.signals import Bools, Floats

CONFIDENCE = 0.95
STEPS = 60


@dataclass(frozen=True)
class Guesses:
    """What an attacker said of m canaries of one training run."""

    canaries: int
    """m, each a member with probability one half, independently of the others."""
    guessed: int
    """r, those that the attacker did not abstain from."""
    correct: int
    """v"""


def epsilon_from_rates(
    true_positives: int,
    members: int,
    false_positives: int,
    nonmembers: int,
    *,
    delta: float = 0.0,
    confidence: float = CONFIDENCE,
) -> float:
    """Returns a lower bound of epsilon from a fixed threshold's successes in independent trials.

    Of Clopper-Pearson limits, each one-sided at half of the error (Nasr 2021, arXiv 2101.04535,
    eq. 2). Trials are independent if each is a training run of its own: one canary over many
    shadows, not many images of one run, for which there is `one_run_epsilon`. The threshold must
    have been chosen on other trials.

    >>> round(epsilon_from_rates(900, 1000, 100, 1000), 2)  # e.g. of epsilon = log(9) = 2.20
    1.99
    """
    error = (1 - confidence) / 2
    tpr = lower_limit(true_positives, members, error)
    fpr = upper_limit(false_positives, nonmembers, error)
    # epsilon limits both how members exceed and how non-members do, with roles exchanged
    ratios = [(tpr - delta) / fpr, (1 - fpr - delta) / (1 - tpr)]
    return float(np.log(max(1.0, *ratios)))


def best_threshold(scores: Floats, members: Bools, *, confidence: float = CONFIDENCE) -> float:
    """Returns the threshold of the largest `epsilon_from_rates` on these trials (delta = 0).

    For use on *other* trials: a bound at a threshold that its own trials chose is not valid.
    """
    inside, outside = np.sort(scores[members]), np.sort(scores[~members])
    thresholds = np.unique(scores)
    hits = len(inside) - np.searchsorted(inside, thresholds)
    alarms = len(outside) - np.searchsorted(outside, thresholds)
    bounds = [
        epsilon_from_rates(hit, len(inside), alarm, len(outside), confidence=confidence)
        for hit, alarm in zip(hits.tolist(), alarms.tolist(), strict=True)
    ]
    return float(thresholds[int(np.argmax(bounds))])


def guess(scores: Floats, members: Bools, *, positive: int, negative: int) -> Guesses:
    """Returns the outcome of calling the highest scores members and the lowest none.

    Args:
        scores: [m] of canaries.
        members: [m], a fair coin each.
        positive: How many are called members; chosen beforehand.
        negative: How many are called non-members; with `positive` at most m.

    >>> guess(np.array([3.0, 1.0, 2.0]), np.array([True, True, False]), positive=1, negative=1)
    Guesses(canaries=3, guessed=2, correct=1)
    """
    order = np.argsort(scores, kind="stable")
    called_in, called_out = order[len(order) - positive :], order[:negative]
    correct = int(members[called_in].sum() + (~members[called_out]).sum())
    return Guesses(len(scores), positive + negative, correct)


def one_run_p_value(guesses: Guesses, epsilon: float, delta: float = 0.0) -> float:
    """Returns how likely as many correct guesses are, at most, under (epsilon, delta)-privacy.

    Steinke 2023 (arXiv 2305.08846, theorem 5.2).
    """
    chance = special.expit(epsilon)
    correct = guesses.correct
    tail = stats.binom.sf(correct - 1, guesses.guessed, chance)
    if delta == 0 or correct == 0:
        return float(min(1.0, tail))
    # P[v > binomial >= v - i] for i = 1 to v
    fewer = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses.guessed, chance)
    slope = np.max(np.cumsum(fewer) / np.arange(1, correct + 1))
    return float(min(1.0, tail + 2 * guesses.canaries * delta * slope))


def one_run_epsilon(
    guesses: Guesses, *, delta: float = 0.0, confidence: float = CONFIDENCE
) -> float:
    """Returns the largest epsilon that the guesses of one training run refute.

    Steinke 2023 (arXiv 2305.08846, appendix D).

    >>> round(one_run_epsilon(Guesses(1000, 100, 75), delta=1e-4), 3)  # the paper's example
    0.673
    """
    return _largest_refuted(lambda epsilon: one_run_p_value(guesses, epsilon, delta), confidence)


def several_runs_epsilon(
    guesses: Sequence[Guesses], *, delta: float = 0.0, confidence: float = CONFIDENCE
) -> float:
    """Returns the largest epsilon that the guesses of several training runs refute together.

    Twice the mean of p-values is a p-value however they hang together (Ruschendorf 1982, theorem
    1): here each run's attacker has learnt from the other runs.

    >>> round(several_runs_epsilon([Guesses(1000, 100, 75)] * 16), 3)
    0.634
    """

    def p_value(epsilon: float) -> float:
        return 2 * float(np.mean([one_run_p_value(each, epsilon, delta) for each in guesses]))

    return _largest_refuted(p_value, confidence)


def _largest_refuted(p_value: Callable[[float], float], confidence: float) -> float:
    error = 1 - confidence
    low, high = 0.0, 1.0
    while p_value(high) < error:
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle) < error else (low, middle)
    return low
