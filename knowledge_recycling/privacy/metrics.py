"""How well an attack's scores tell members from other images.

Scores are larger for likelier members. Intervals are 95 %: Clopper-Pearson for rates, DeLong for
the area under the ROC, Student's t over targets for several targets together.

Shapes: N images, S shadows, Q queries, K classes, T targets, P points of a ROC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats
from sklearn.metrics import roc_curve

from knowledge_recycling.errors import DataError
from knowledge_recycling.evaluation.utility import LEVEL, Estimate
from knowledge_recycling.privacy.signals import AnyFloats, Bools, Floats, Labels, Signals

FPRS = (0.1, 0.01, 0.001)
MIN_FALSE_POSITIVES = 10
"""A false positive rate is resolved where it comes to this many images."""
LOG_POINTS = 100
IMAGE_BLOCKS = 20


@dataclass(frozen=True)
class Roc:
    """True against false positive rates, both rising; intervals where they were estimated."""

    fpr: Floats
    """[P]"""
    tpr: Floats
    """[P]"""
    low: Floats | None = None
    """[P]"""
    high: Floats | None = None
    """[P]"""


@dataclass(frozen=True)
class Detection:
    """True positives at the threshold with the most false positives allowed."""

    fpr: float
    """Allowed false positive rate."""
    tpr: Estimate | None
    """Of that threshold; `None`: not resolvable, too few images are no members."""
    achieved_fpr: Estimate | None
    """Of that threshold, at most `fpr` among these images; its interval says what it may be among
    all, which the interval of `tpr` does not allow for."""


@dataclass(frozen=True)
class Leakage:
    """What one attack learns about one target."""

    members: int
    nonmembers: int
    auc: Estimate
    balanced_accuracy: float
    """At the best threshold for these very images, hence a little too high."""
    detections: tuple[Detection, ...]
    """At the rates of `FPRS`."""
    roc: Roc
    """At false positive rates spread evenly on a log axis."""


@dataclass(frozen=True)
class Trials:
    """The scores of one attack on one target, and the truth."""

    scores: Floats
    """[N]"""
    members: Bools
    """[N]"""


@dataclass(frozen=True)
class LeftOut:
    """A shadow as the target of the others."""

    signals: Signals
    """Of the S - 1 others."""
    members: Bools
    """[N], what the attack has to find out."""


def roc(scores: Floats, members: Bools) -> Roc:
    """Returns the ROC at every distinct score.

    >>> roc(np.array([3.0, 2.0, 1.0]), np.array([True, False, True])).tpr.tolist()
    [0.0, 0.5, 0.5, 1.0]
    """
    fpr, tpr, _ = roc_curve(members, scores, drop_intermediate=False)
    return Roc(np.asarray(fpr), np.asarray(tpr))


def tpr_at(curve: Roc, fpr: float | Floats) -> Floats:
    """Returns the largest true positive rates with a false positive rate of at most `fpr`."""
    return np.asarray(curve.tpr[np.searchsorted(curve.fpr, fpr, side="right") - 1])


def measure_leakage(scores: Floats, members: Bools) -> Leakage:
    """Returns what the scores [N] tell about the members [N].

    Raises:
        DataError: Fewer than 2 images are members, or 2 are not, or a score is not a number.

    >>> scores, members = np.array([2.0, 3.0, 1.0, 0.0]), np.array([True, True, False, False])
    >>> leakage = measure_leakage(scores, members)
    >>> leakage.auc.value, leakage.balanced_accuracy, leakage.detections[0].tpr
    (1.0, 1.0, None)
    """
    _check(scores, members)
    curve = roc(scores, members)
    inside, outside = int(members.sum()), int((~members).sum())
    rates = _log_rates(outside)
    return Leakage(
        members=inside,
        nonmembers=outside,
        auc=auc(scores, members),
        balanced_accuracy=float(np.max(curve.tpr + 1 - curve.fpr) / 2),
        detections=tuple(_detection(curve, fpr, inside, outside) for fpr in FPRS),
        roc=Roc(rates, tpr_at(curve, rates)),
    )


def _check(scores: Floats, members: Bools) -> None:
    inside, outside = int(members.sum()), int((~members).sum())
    if min(inside, outside) < 2:
        raise DataError(
            "an attack cannot be measured",
            expected="at least 2 members and 2 other images",
            got=f"{inside} members, {outside} others",
        )
    if not np.isfinite(scores).all():
        raise DataError(
            "an attack gives scores that are not finite",
            got=f"{int(np.sum(~np.isfinite(scores)))} of {len(scores)}",
        )


def _log_rates(nonmembers: int) -> Floats:
    """Returns false positive rates from one image to all, evenly spaced on a log axis."""
    return np.geomspace(1 / nonmembers, 1.0, LOG_POINTS)


def _detection(curve: Roc, fpr: float, inside: int, outside: int) -> Detection:
    if not resolvable(fpr, outside):
        return Detection(fpr, None, None)
    at = int(np.searchsorted(curve.fpr, fpr, side="right")) - 1
    tpr, achieved = (round(curve.tpr[at] * inside), round(curve.fpr[at] * outside))
    return Detection(fpr, proportion(tpr, inside), proportion(achieved, outside))


def resolvable(fpr: float, nonmembers: int) -> bool:
    """Returns whether so many non-members can tell a false positive rate."""
    return nonmembers * fpr >= MIN_FALSE_POSITIVES * (1 - 1e-9)  # 0.1 * 100 rounds below 10


def proportion(hits: int, count: int) -> Estimate:
    """Returns hits / count with its Clopper-Pearson interval.

    >>> proportion(0, 10).low, round(proportion(0, 10).high, 4)  # 1 - 0.025^(1/10)
    (0.0, 0.3085)
    """
    error = (1 - LEVEL) / 2
    low, high = lower_limit(hits, count, error), upper_limit(hits, count, error)
    return Estimate(hits / count, low, high)


def lower_limit(hits: int, count: int, error: float) -> float:
    """Returns Clopper and Pearson's one-sided lower limit of a rate, wrong as often as `error`."""
    return float(stats.beta.ppf(error, hits, count - hits + 1)) if hits > 0 else 0.0


def upper_limit(hits: int, count: int, error: float) -> float:
    """Returns Clopper and Pearson's one-sided upper limit of a rate, wrong as often as `error`."""
    return 1 - lower_limit(count - hits, count, error)


def auc(scores: Floats, members: Bools) -> Estimate:
    """Returns how often a member scores above another image, ties counting half.

    The interval is DeLong's (1988), on the logit scale so that it stays within [0, 1]; where all
    pairs or none are in order, it is that of as many independent pairs as there can be.
    """
    inside, outside = scores[members], scores[~members]
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    won = (ranks[: len(inside)] - stats.rankdata(inside)) / len(outside)  # [N of members]
    lost = 1 - (ranks[len(inside) :] - stats.rankdata(outside)) / len(inside)
    value = float(won.mean())
    pairs = min(len(inside), len(outside))
    if value in (0.0, 1.0):
        return proportion(round(value) * pairs, pairs)
    error = np.sqrt(np.var(won, ddof=1) / len(won) + np.var(lost, ddof=1) / len(lost))
    reach = stats.norm.ppf((1 + LEVEL) / 2) * error / (value * (1 - value))
    low, high = special.expit(special.logit(value) + np.array([-reach, reach]))
    return Estimate(value, float(low), float(high))


def accuracy_over_privacy(accuracy: float, area: float) -> float:
    """Returns AOP: accuracy / (2 max(area, 0.5))^2, equal to the accuracy where nothing leaks.

    >>> accuracy_over_privacy(0.9, 0.5), accuracy_over_privacy(0.9, 0.75)
    (0.9, 0.4)
    """
    return accuracy / (2 * max(area, 0.5)) ** 2


def leakage_by_class(
    scores: Floats, members: Bools, labels: Labels, num_classes: int
) -> tuple[Leakage | None, ...]:
    """Returns the leakage within each class; `None` where it lacks 2 members or 2 others."""
    found: list[Leakage | None] = []
    for rows in (labels == k for k in range(num_classes)):
        inside = int(members[rows].sum())
        enough = min(inside, int(rows.sum()) - inside) >= 2
        found.append(measure_leakage(scores[rows], members[rows]) if enough else None)
    return tuple(found)


def closer_to_members(to_member: Floats, to_holdout: Floats) -> Estimate:
    """Returns the share of synthetic images that are nearer to a member than to any holdout image.

    One half where nothing leaks, if there are as many members as holdout images. Ties count half.
    For the distances see `evaluation.quality.nearest_distances`. Synthetic images that share a
    neighbour are not independent, so that the interval is rather too narrow.

    Args:
        to_member: [M], distance of each synthetic image to the nearest member.
        to_holdout: [M], to the nearest holdout image.
    """
    wins = np.sum(to_member < to_holdout) + np.sum(to_member == to_holdout) / 2
    share = proportion(round(float(wins)), len(to_member))
    return Estimate(float(wins) / len(to_member), share.low, share.high)


def left_out_targets(
    shadow_logits: AnyFloats,
    shadow_members: Bools,
    labels: Labels,
    population: Bools | None = None,
) -> Iterator[LeftOut]:
    """Yields each shadow as the target of the others; one at a time, for each copies S - 1 shadows.

    Args:
        shadow_logits: [S,Q,N,K]
        shadow_members: [S,N]
        labels: [N]
        population: [N], images that no shadow was trained on.

    Raises:
        DataError: A shadow was trained on an image of the population.
    """
    if population is not None and shadow_members[:, population].any():
        raise DataError(
            "a shadow was trained on an image of the population",
            where="population",
            expected="images OUT of every shadow",
        )
    for target in range(len(shadow_logits)):
        signals = Signals(
            labels=labels,
            logits=shadow_logits[target],
            shadow_logits=np.delete(shadow_logits, target, axis=0),
            shadow_members=np.delete(shadow_members, target, axis=0),
            population=population,
        )
        yield LeftOut(signals, shadow_members[target])


def attack_each(targets: Iterator[LeftOut], attack: Callable[[Signals], Floats]) -> list[Trials]:
    """Returns the attack's scores of each target's images that may be members."""
    rows = ((each, each.signals.judged()) for each in targets)
    return [Trials(attack(each.signals)[judged], each.members[judged]) for each, judged in rows]


@dataclass(frozen=True)
class Aggregate:
    """What one attack learns about several targets together."""

    targets: int
    auc: Estimate
    detections: tuple[tuple[float, Estimate | None], ...]
    """Allowed false positive rate and true positive rate; `None`: not resolvable."""
    roc: Roc
    """At false positive rates spread evenly on a log axis."""


def aggregate(trials: Sequence[Trials]) -> Aggregate:
    """Returns the ROC of all targets' scores together: one threshold for all.

    Intervals are those of `jackknifed`.

    Args:
        trials: Of the same images in the same order.

    Raises:
        DataError: Fewer than 2 targets, or nothing to tell apart.
    """
    if len(trials) < 2:
        raise DataError("one target has no spread", expected="at least 2", got=len(trials))
    scores = np.stack([each.scores for each in trials])  # [T, N]
    members = np.stack([each.members for each in trials])
    _check(scores.ravel(), members.ravel())
    outside = int((~members).sum())
    rates = np.concatenate([FPRS, _log_rates(outside)])

    def statistics(rows: Bools, columns: Bools) -> Floats:
        chosen = np.ix_(rows, columns)
        return _statistics(scores[chosen].ravel(), members[chosen].ravel(), rates)

    area, *points = jackknifed(statistics, *scores.shape)
    detections = [
        (fpr, point if resolvable(fpr, outside) else None)
        for fpr, point in zip(FPRS, points, strict=False)
    ]
    values, low, high = np.array([(each.value, each.low, each.high) for each in points]).T
    curve = Roc(rates[len(FPRS) :], *(part[len(FPRS) :] for part in (values, low, high)))
    return Aggregate(len(trials), area, tuple(detections), curve)


def jackknifed(
    statistics: Callable[[Bools, Bools], Floats], targets: int, images: int
) -> list[Estimate]:
    """Returns statistics in [0, 1] of T targets and N images, with intervals.

    What is measured on one target hangs together, and so does what is measured on one image, so
    that intervals come from leaving out one target, and one of `IMAGE_BLOCKS` blocks of images, at
    a time: the variances of both add up, which is rather too much; Student's t has T - 1 degrees
    of freedom.

    Args:
        statistics: Which targets [T] and which images [N] to the statistics [V] of these.
        targets: T, at least 2.
        images: N.
    """
    every, whole_set = np.ones(targets, np.bool_), np.ones(images, np.bool_)
    blocks = np.arange(images) % min(IMAGE_BLOCKS, images)
    whole = statistics(every, whole_set)
    by_target = [statistics(np.arange(targets) != each, whole_set) for each in range(targets)]
    by_block = [statistics(every, blocks != each) for each in np.unique(blocks)]
    variance = _jackknife_variance(np.stack(by_target)) + _jackknife_variance(np.stack(by_block))
    reach = stats.t.ppf((1 + LEVEL) / 2, targets - 1) * np.sqrt(variance)
    low, high = np.clip(whole - reach, 0, 1), np.clip(whole + reach, 0, 1)
    return [Estimate(*map(float, row)) for row in zip(whole, low, high, strict=True)]


def _statistics(scores: Floats, members: Bools, rates: Floats) -> Floats:
    """Returns the area under the ROC, then its true positive rates at `rates`."""
    curve = roc(scores, members)
    area = np.trapezoid(curve.tpr, curve.fpr)
    return np.concatenate([[area], tpr_at(curve, rates)])


def _jackknife_variance(without: Floats) -> Floats:
    """Returns the variances [V] of values that are [G,V] without each of G groups."""
    count = len(without)
    return np.asarray((count - 1) ** 2 / count * np.var(without, axis=0, ddof=1))
