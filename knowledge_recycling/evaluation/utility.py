"""How well a classifier does on one split, and how far the student is from the teacher.

Unless said otherwise, intervals are 95 % percentile intervals of a stratified bootstrap: images are
drawn with replacement within their class, so no resample lacks a class. Metrics are written for
weighted images: a resample is how often each image was drawn, the estimate itself is weight 1.

Shapes: N images, K classes, R resamples, B calibration bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import rel_entr
from scipy.stats import binomtest

from knowledge_recycling.errors import DataError

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

CALIBRATION_BINS = 15
LEVEL = 0.95
CHUNK = 2_000_000
"""Weights held in memory at a time."""


@dataclass(frozen=True)
class Estimate:
    """A fraction in [0, 1] and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """Images of similar confidence."""

    confidence: float
    """Mean probability of the predicted class."""
    accuracy: float
    count: int


@dataclass(frozen=True)
class Utility:
    """How well a classifier does on one split; averages are over the classes that the split has."""

    n: int
    """Images of the split."""
    accuracy: Estimate
    balanced_accuracy: Estimate
    auroc: Estimate
    """Of class 1 against class 0, or the mean of each class against the rest."""
    f1: Estimate
    """Mean over classes."""
    ece: Estimate
    """Expected calibration error, 15 bins of equal width (Guo 2017, arXiv 1706.04599, eq. 3); its
    interval is the percentile interval mirrored at the value, because resampling adds to an ECE."""
    recall: tuple[Estimate | None, ...]
    """Of each class, [K], with Wilson intervals; `None` where the split has no such image."""
    confusion: list[list[int]]
    """Images by true class (rows) and predicted class (columns), [K,K]."""
    reliability: tuple[Bin, ...]
    """The calibration bins that have images, by rising confidence."""


@dataclass(frozen=True)
class Gap:
    """Student minus teacher on the same images, in percentage points, with paired intervals."""

    accuracy_pp: float
    accuracy_ci95: tuple[float, float]
    balanced_accuracy_pp: float
    balanced_accuracy_ci95: tuple[float, float]
    auroc_pp: float
    auroc_ci95: tuple[float, float]


def measure_utility(
    probabilities: Floats, labels: Labels, generator: np.random.Generator, resamples: int = 1000
) -> Utility:
    """Returns the utility of a classifier.

    Args:
        probabilities: [N,K], rows sum to 1.
        labels: [N], 0 to K-1.
        generator: Draws the resamples.
        resamples: R

    Raises:
        DataError: All labels are of one class.

    >>> chances = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    >>> utility = measure_utility(chances, np.array([0, 0, 1, 1]), np.random.default_rng(0))
    >>> utility.accuracy.value, utility.auroc.value, utility.confusion
    (0.75, 0.75, [[2, 0], [1, 1]])
    """
    outcome = _outcome(probabilities, labels)
    draws = _weights(labels, generator, resamples)
    drawn = np.concatenate([_metrics(outcome, weights) for weights in draws], axis=1)
    values = _metrics(outcome, np.ones((len(labels), 1)))[:, 0]
    confusion = _confusion(outcome)
    return Utility(
        n=len(labels),
        accuracy=_estimate(values[0], drawn[0]),
        balanced_accuracy=_estimate(values[1], drawn[1]),
        auroc=_estimate(values[2], drawn[2]),
        f1=_estimate(values[3], drawn[3]),
        ece=_unbiased(_estimate(values[4], drawn[4])),
        recall=tuple(
            _wilson(int(row[k]), int(row.sum())) if row.any() else None
            for k, row in enumerate(confusion)
        ),
        confusion=confusion.tolist(),
        reliability=_reliability(outcome),
    )


def measure_gap(
    teacher_probabilities: Floats,
    student_probabilities: Floats,
    labels: Labels,
    generator: np.random.Generator,
    resamples: int = 1000,
) -> Gap:
    """Returns student minus teacher; each resample draws the same images for both.

    Args:
        teacher_probabilities: [N,K], rows sum to 1.
        student_probabilities: [N,K], of the same images.
        labels: [N], 0 to K-1.
        generator: Draws the resamples.
        resamples: R

    Raises:
        DataError: All labels are of one class.

    >>> teacher = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    >>> gap = measure_gap(teacher, teacher, np.array([0, 0, 1, 1]), np.random.default_rng(0))
    >>> gap.accuracy_pp, gap.accuracy_ci95
    (0.0, (0.0, 0.0))
    """
    teacher = _outcome(teacher_probabilities, labels)
    student = _outcome(student_probabilities, labels)

    def gains(weights: Floats) -> Floats:
        return 100 * (_metrics(student, weights) - _metrics(teacher, weights))

    draws = _weights(labels, generator, resamples)
    drawn = np.concatenate([gains(weights) for weights in draws], axis=1)
    values = gains(np.ones((len(labels), 1)))[:, 0]
    return Gap(
        accuracy_pp=float(values[0]),
        accuracy_ci95=_interval(drawn[0]),
        balanced_accuracy_pp=float(values[1]),
        balanced_accuracy_ci95=_interval(drawn[1]),
        auroc_pp=float(values[2]),
        auroc_ci95=_interval(drawn[2]),
    )


@dataclass(frozen=True)
class Fidelity:
    """How closely the student follows who labelled its images, whatever is right.

    Stanton et al. 2021, arXiv 2106.05945.
    """

    agreement: Estimate
    """Share of the images that get the same answer, with a Wilson interval."""
    divergence: float
    """Mean Kullback-Leibler divergence of the student's probabilities from the labelling ones, in
    nats."""


def measure_fidelity(labelling_probabilities: Floats, student_probabilities: Floats) -> Fidelity:
    """Returns how closely the student follows who labelled its images.

    Args:
        labelling_probabilities: [N,K], rows sum to 1.
        student_probabilities: [N,K], of the same images.

    >>> teachers = np.array([[0.5, 0.5], [0.25, 0.75]])
    >>> fidelity = measure_fidelity(teachers, np.array([[0.5, 0.5], [0.75, 0.25]]))
    >>> fidelity.agreement.value, round(fidelity.divergence, 3)  # log(3) / 4
    (0.5, 0.275)
    """
    same = student_probabilities.argmax(axis=1) == labelling_probabilities.argmax(axis=1)
    positive = np.maximum(student_probabilities, np.finfo(np.float64).tiny)
    divergence = rel_entr(labelling_probabilities, positive).sum(axis=1).mean()
    return Fidelity(_wilson(int(same.sum()), len(same)), float(divergence))


@dataclass(frozen=True)
class _Outcome:
    probabilities: Floats
    """[N,K]"""
    labels: Labels
    """[N]"""
    present: Labels
    """[P], the classes that the labels have."""
    predicted: Labels
    """[N]"""
    confidence: Floats
    """[N], probability of the predicted class."""
    bin: Labels
    """[N], calibration bin, 0 to B-1."""

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        return np.equal(self.predicted, self.labels)


def _outcome(probabilities: Floats, labels: Labels) -> _Outcome:
    present = np.unique(labels)
    if len(present) < 2:
        raise DataError(
            "a classifier cannot be evaluated on images of one class only",
            expected="at least two classes among the images",
            got=f"{len(labels)} images, all of class {present.tolist()}",
            next_step="use a split that has images of every class",
        )
    probabilities = np.asarray(probabilities, dtype=np.float64)
    confidence = probabilities.max(axis=1)
    upper_edges = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64)
    return _Outcome(
        probabilities=probabilities,
        labels=labels,
        present=present,
        predicted=probabilities.argmax(axis=1),
        confidence=confidence,
        bin=np.clip(upper_edges - 1, 0, CALIBRATION_BINS - 1),
    )


def _weights(labels: Labels, generator: np.random.Generator, resamples: int) -> Iterator[Floats]:
    """Yields how often each image was drawn, [N,r], in chunks that bound the memory."""
    size = max(1, CHUNK // len(labels))
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        weights = np.empty((len(labels), count))
        for members in (np.flatnonzero(labels == k) for k in np.unique(labels)):
            shares = np.full(len(members), 1 / len(members))
            weights[members] = generator.multinomial(len(members), shares, size=count).T
        yield weights


def _metrics(outcome: _Outcome, weights: Floats) -> Floats:
    """Returns accuracy, balanced accuracy, AUROC, F1 and ECE, [5,R], under weights [N,R]."""
    is_class = _one_hot(outcome.labels, outcome.present)  # [N, P]
    is_predicted = _one_hot(outcome.predicted, outcome.present)
    real = is_class.T @ weights  # [P, R]
    predicted = is_predicted.T @ weights
    hits = (is_class * is_predicted).T @ weights
    return np.stack(
        [
            hits.sum(axis=0) / len(weights),
            np.mean(hits / real, axis=0),
            _auroc(outcome, weights),
            np.mean(2 * hits / (real + predicted), axis=0),
            _calibration_error(outcome, weights),
        ]
    )


def _one_hot(values: Labels, classes: Labels) -> Floats:
    return np.equal(values[:, None], classes).astype(np.float64)


def _auroc(outcome: _Outcome, weights: Floats) -> Floats:
    """Returns the AUROC [R] of class 1, or its mean over the classes against the rest."""
    classes = [1] if outcome.probabilities.shape[1] == 2 else outcome.present
    areas = [_area(outcome.probabilities[:, k], outcome.labels == k, weights) for k in classes]
    return np.asarray(np.mean(areas, axis=0))


def _area(scores: Floats, positive: npt.NDArray[np.bool_], weights: Floats) -> Floats:
    """Returns how often a positive scores above a negative, ties counting half, [R]."""
    order = np.argsort(scores[~positive])
    negatives = scores[~positive][order]
    cumulated = np.cumsum(weights[~positive][order], axis=0)
    cumulated = np.concatenate([np.zeros((1, weights.shape[1])), cumulated])
    below = cumulated[np.searchsorted(negatives, scores[positive], side="left")]
    not_above = cumulated[np.searchsorted(negatives, scores[positive], side="right")]
    wins = np.einsum("nr,nr->r", weights[positive], below + not_above) / 2
    return np.asarray(wins / (weights[positive].sum(axis=0) * cumulated[-1]))


def _calibration_error(outcome: _Outcome, weights: Floats) -> Floats:
    """Returns the ECE, [R]."""
    in_bin = _one_hot(outcome.bin, np.arange(CALIBRATION_BINS))
    excess = in_bin * (outcome.confidence - outcome.correct)[:, None]  # [N, B]
    return np.asarray(np.abs(excess.T @ weights).sum(axis=0) / len(weights))


def _estimate(value: float, drawn: Floats) -> Estimate:
    return Estimate(float(value), *_interval(drawn))


def _interval(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _unbiased(ece: Estimate) -> Estimate:
    """Returns the interval mirrored at the value (Davison & Hinkley 1997, eq. 5.6).

    Noise only ever adds to an ECE, and resampling adds it a second time: the plain percentile
    interval of a well calibrated classifier lies above the truth nearly always.
    """
    low, high = 2 * ece.value - ece.high, 2 * ece.value - ece.low
    return Estimate(ece.value, max(0.0, min(low, ece.value)), max(high, ece.value))


def _wilson(hits: int, count: int) -> Estimate:
    interval = binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return Estimate(hits / count, float(interval.low), float(interval.high))


def _confusion(outcome: _Outcome) -> Labels:
    num_classes = outcome.probabilities.shape[1]
    cells = outcome.labels * num_classes + outcome.predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _reliability(outcome: _Outcome) -> tuple[Bin, ...]:
    groups = (outcome.bin == b for b in np.unique(outcome.bin))
    return tuple(
        Bin(
            confidence=float(outcome.confidence[group].mean()),
            accuracy=float(outcome.correct[group].mean()),
            count=int(group.sum()),
        )
        for group in groups
    )
