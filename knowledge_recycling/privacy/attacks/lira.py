"""The likelihood ratio attack, LiRA (Carlini 2022, arXiv 2112.03570, algorithm 1 and section VI).

The scaled logit of an image is taken as normal: once among shadows trained on it, once among those
that were not. Shapes: N images, Q queries, S shadows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import solve_triangular

from knowledge_recycling.config import PluginConfig
from knowledge_recycling.errors import DataError
from knowledge_recycling.privacy.signals import (
    SHADOWS,
    Bools,
    Floats,
    Labels,
    Signals,
    shadow_confidence,
    target_confidence,
)

NEEDS = ("logits", *SHADOWS)

MIN_STD = 1e-6
RIDGE = 1e-6
"""Added to the correlation of queries, which identical queries would make singular."""


class Config(PluginConfig):
    """Which shadows are used, and how normal distributions are fitted to them."""

    kind: Literal["lira"] = "lira"
    mode: Literal["online", "offline"] = "online"
    """`online` compares IN with OUT shadows; `offline` needs OUT shadows only."""
    variance: Literal["fixed", "per_image"] = "fixed"
    """`fixed`: one variance for all images, about each image's own mean; better than `per_image`
    below about 64 shadows."""
    queries: Literal["independent", "joint"] = "independent"
    """`independent`: log-likelihoods of the queries add up. `joint`: with their correlation, pooled
    over all images."""


def score(signals: Signals, config: Config) -> Floats:
    """Returns the log-likelihood ratio of IN to OUT, [N]; offline, how far above OUT it is.

    Images of the population, which no shadow has IN, are no members: minus infinity.

    Offline that is the standard score whose normal distribution function is the paper's equation 4:
    of the same order, but not rounded to 1 where members lie.

    Raises:
        DataError: An image has too few IN or OUT shadows.
    """
    judged = signals.judged()
    target = target_confidence(signals)[:, judged]
    shadows = shadow_confidence(signals)[:, :, judged]
    members = signals.mask("shadow_members")[:, judged]
    scores = np.full(len(judged), -np.inf)
    outside = _fit(shadows, ~members, config, "OUT")
    if config.mode == "offline":
        scores[judged] = _standard_score(target, outside)
    else:
        inside = _fit(shadows, members, config, "IN")
        scores[judged] = _log_likelihood(target, inside) - _log_likelihood(target, outside)
    return scores


@dataclass(frozen=True)
class _Normal:
    mean: Floats
    """[Q,N]"""
    std: Floats
    """[Q,N], or [Q,1] if all images share it."""
    root: Floats
    """[Q,Q], lower Cholesky factor of the queries' correlation."""


def _fit(shadows: Floats, chosen: Bools, config: Config, side: str) -> _Normal:
    count = chosen.sum(axis=0)  # [N]
    _check_count(count, 2 if config.variance == "per_image" else 1, side)
    mean = np.sum(shadows, axis=0, where=chosen[:, None]) / count
    residuals = np.where(chosen[:, None], shadows - mean, 0.0)  # [S, Q, N]
    squares = np.sum(residuals**2, axis=0)
    if config.variance == "per_image":
        variance = squares / (count - 1)
    else:
        variance = squares.sum(axis=1, keepdims=True) / np.sum(count - 1)
    std = np.maximum(np.sqrt(variance), MIN_STD)
    correlation = np.eye(len(mean))
    if config.queries == "joint":
        unit = residuals / std
        pooled = np.einsum("sqn,srn->qr", unit, unit, optimize=True) / np.sum(count - 1)
        correlation = (pooled + RIDGE * correlation) / (1 + RIDGE)
    return _Normal(mean, std, np.asarray(np.linalg.cholesky(correlation)))


def _check_count(count: Labels, least: int, side: str) -> None:
    if count.min() < least or count.max() < 2:
        raise DataError(
            f"too few {side} shadows for LiRA",
            where="shadow_members",
            expected=f"every image {side} {least} or more shadows, some of them 2 or more",
            got=f"{int(np.sum(count < least))} images with fewer",
            next_step="train more shadows, each on a random half of the images",
        )


def _whitened(values: Floats, root: Floats) -> Floats:
    return np.asarray(solve_triangular(root, values, lower=True))


def _log_likelihood(target: Floats, normal: _Normal) -> Floats:
    """Returns the log density of [Q,N] up to a constant, [N]."""
    distance = _whitened((target - normal.mean) / normal.std, normal.root)
    volume = np.log(normal.std).sum(axis=0) + np.log(np.diag(normal.root)).sum()
    return np.asarray(-0.5 * np.sum(distance**2, axis=0) - volume)


def _standard_score(target: Floats, normal: _Normal) -> Floats:
    """Returns how far [Q,N] is above the mean in all queries at once, standard normal if OUT."""
    distance = _whitened((target - normal.mean) / normal.std, normal.root)
    direction = _whitened(np.ones(len(target)), normal.root)
    return np.asarray(direction @ distance / np.linalg.norm(direction))
