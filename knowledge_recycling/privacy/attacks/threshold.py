"""Thresholds on one number of the target's output, averaged over the queries.

Shapes: N images, K classes, Q queries, S shadows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import special

from knowledge_recycling.config import PluginConfig
from knowledge_recycling.errors import DataError
from knowledge_recycling.privacy.signals import (
    AnyFloats,
    Bools,
    Floats,
    Labels,
    Signals,
    log_probability,
    of_label,
    scaled_logits,
)

NEEDS = ("logits",)
"""`per_class` needs shadows too."""


class Config(PluginConfig):
    """Which number, and whether each class has a threshold of its own."""

    kind: Literal["threshold"] = "threshold"
    signal: Literal["loss", "confidence", "entropy", "modified_entropy"] = "loss"
    """`loss`: cross-entropy of the label (Yeom 2018, arXiv 1709.01604). `confidence`: the largest
    probability, whatever the label (Salem 2019, arXiv 1806.01246). `entropy` of the probabilities,
    and the `modified_entropy` that knows the label (Song & Mittal 2021, arXiv 2003.10595, eq. 9).
    """
    per_class: bool = False
    """Each class gets its own threshold, from what the shadows say of images they were not trained
    on."""


def score(signals: Signals, config: Config) -> Floats:
    """Returns how small the loss or entropy, or how large the confidence is, [N].

    With `per_class` it is a quantile among the OUT images of the same class in all shadows, so that
    one threshold on it is one threshold per class.
    """
    statistic = _STATISTICS[config.signal]
    values = _measured(signals.floats("logits"), signals.labels, statistic)
    if not config.per_class:
        return values
    shadows = np.stack(
        [_measured(logits, signals.labels, statistic) for logits in signals.get("shadow_logits")]
    )  # [S, N]
    return _quantiles(values, shadows, ~signals.mask("shadow_members"), signals.labels)


Statistic = Callable[[Floats, Labels], Floats]
"""Scaled logits [Q,N,K] and labels [N] to values [Q,N], larger for members."""


def _measured(logits: AnyFloats, labels: Labels, statistic: Statistic) -> Floats:
    return np.asarray(statistic(scaled_logits(logits), labels).mean(axis=0))


def _loss(scaled: Floats, labels: Labels) -> Floats:
    return log_probability(of_label(scaled, labels))


def _confidence(scaled: Floats, labels: Labels) -> Floats:
    del labels
    return np.asarray(
        scaled.max(axis=-1)
    )  # orders as the probability does, but does not round to 1


def _entropy(scaled: Floats, labels: Labels) -> Floats:
    del labels
    return np.asarray(np.sum(special.expit(scaled) * log_probability(scaled), axis=-1))


def _modified_entropy(scaled: Floats, labels: Labels) -> Floats:
    own = of_label(scaled, labels)
    # the sum over the other classes is that over all classes without the label's
    doubts = special.expit(scaled) * log_probability(-scaled)
    others = np.where(np.arange(scaled.shape[-1]) == labels[:, None], 0.0, doubts).sum(axis=-1)
    return np.asarray(special.expit(-own) * log_probability(own) + others)


_STATISTICS: dict[str, Statistic] = {
    "loss": _loss,
    "confidence": _confidence,
    "entropy": _entropy,
    "modified_entropy": _modified_entropy,
}


def _quantiles(values: Floats, shadows: Floats, outside: Bools, labels: Labels) -> Floats:
    scores = np.empty_like(values)
    for k in np.unique(labels):
        rows = labels == k
        known = np.sort(shadows[:, rows][outside[:, rows]])
        if len(known) < 2:
            raise DataError(
                f"too few OUT images of class {k} for a threshold of its own",
                expected="at least 2 over all shadows",
                got=len(known),
                next_step="leave images of every class out of the shadows, or set per_class=false",
            )
        scores[rows] = _quantile(values[rows], known)
    return scores


def _quantile(values: Floats, known: Floats) -> Floats:
    """Returns the quantiles of values among sorted known ones, about 0 to 1.

    Beyond the extremes it goes on rising, by less than one rank: members lie there, and equal
    scores could not be told apart.
    """
    inside = np.interp(values, known, np.arange(len(known)))
    spread = np.std(known) + np.finfo(np.float64).tiny
    above = np.maximum(values - known[-1], 0) / spread
    below = np.maximum(known[0] - values, 0) / spread
    return np.asarray((inside + above / (1 + above) - below / (1 + below)) / (len(known) - 1))
