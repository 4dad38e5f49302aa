"""The robust attack, RMIA (Zarifzadeh 2024, arXiv 2312.03262, equations 2 to 4).

An image is compared with images of the population, each relative to what shadows say of it.
Shapes: N images of which P are of the population, Q queries, S shadows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from scipy import special

from knowledge_recycling.config import PluginConfig
from knowledge_recycling.errors import DataError
from knowledge_recycling.privacy.signals import (
    SHADOWS,
    Bools,
    Floats,
    Signals,
    log_probability,
    shadow_confidence,
    target_confidence,
)

NEEDS = ("logits", *SHADOWS, "population")


class Config(PluginConfig):
    """Which shadows are used, and what counts as a win over an image of the population."""

    kind: Literal["rmia"] = "rmia"
    mode: Literal["online", "offline"] = "online"
    """`online` averages IN and OUT shadows; `offline` has OUT ones only and extrapolates."""
    offline_a: float = Field(0.3, ge=0, le=1)
    """a of `offline`: IN probabilities are taken as a times the OUT ones plus 1 - a."""
    gamma: float = Field(1.0, gt=0)
    """An image wins where its likelihood ratio is at least this multiple of the other's."""


def score(signals: Signals, config: Config) -> Floats:
    """Returns the share of the population that an image wins against, [N], 0 to 1.

    With several queries a win is one in more than half of them, the population's images being seen
    as they are.

    Raises:
        DataError: The population is empty, or an image is IN or OUT of no shadow.
    """
    target = log_probability(target_confidence(signals))  # [Q, N]
    shadows = log_probability(shadow_confidence(signals))  # [S, Q, N]
    population = signals.mask("population")
    if not population.any():
        raise DataError("the population is empty", where="population", expected="some images")
    members = signals.mask("shadow_members")
    ratios = target - _log_expected(shadows, members, population, config)
    plain = np.sort(ratios[0, population])
    # won in more than half of the queries: as the query that divides them does
    middle = np.sort(ratios, axis=0)[(len(ratios) - 1) // 2]
    wins = np.searchsorted(plain, middle - np.log(config.gamma), side="right")
    return np.asarray(wins / len(plain), dtype=np.float64)


def _log_expected(shadows: Floats, members: Bools, population: Bools, config: Config) -> Floats:
    """Returns the log of the probability that a random model gives each label, [Q,N]."""
    rest = ~population
    outside = _log_mean(shadows, ~members, np.ones_like(population), "OUT")
    expected = outside.copy()  # the population is OUT of every model
    if config.mode == "online":
        inside = _log_mean(shadows, members, rest, "IN")
        expected[:, rest] = np.logaddexp(inside, outside)[:, rest] - np.log(2)
    else:
        a = config.offline_a
        certain = np.log1p(-a) if a < 1 else -np.inf
        mixed = np.logaddexp(np.log1p(a) + outside, certain) - np.log(2)
        expected[:, rest] = mixed[:, rest]
    return expected


def _log_mean(shadows: Floats, chosen: Bools, needed: Bools, side: str) -> Floats:
    """Returns the log of the mean probability over the chosen shadows, [Q,N]."""
    count = chosen.sum(axis=0)
    missing = int(np.sum((count == 0) & needed))
    if missing:
        raise DataError(
            f"{missing} images have no {side} shadow",
            where="shadow_members",
            expected=f"every image {side} at least one shadow",
            next_step="train more shadows, each on a random half of the images",
        )
    logs = np.where(chosen[:, None], shadows, -np.inf)
    with np.errstate(divide="ignore"):  # a mean over no shadow, of images that do not need it
        return np.asarray(special.logsumexp(logs, axis=0) - np.log(np.maximum(count, 1)))
