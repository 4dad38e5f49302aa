"""A classifier that tells members by the model's outputs, trained on shadows (Shokri 2017).

arXiv 1610.05820: one attack classifier per class.

Shapes: N images, K classes, Q queries, S shadows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from knowledge_recycling.config import PluginConfig
from knowledge_recycling.errors import DataError
from knowledge_recycling.privacy.signals import (
    SHADOWS,
    AnyFloats,
    Bools,
    Floats,
    Labels,
    Signals,
    of_label,
    scaled_logits,
)

NEEDS = ("logits", *SHADOWS)


class Config(PluginConfig):
    """How the attack classifiers are fitted."""

    kind: Literal["trained"] = "trained"
    inverse_penalty: float = Field(1.0, gt=0)
    """scikit-learn's C of the logistic regression on standardised outputs."""
    min_per_class: PositiveInt = 20
    """IN and OUT outputs that a class needs for a classifier of its own; those with fewer share
    one that is fitted to all classes."""


def score(signals: Signals, config: Config) -> Floats:
    """Returns the attack classifiers' log-odds of being a member, [N]; fitted to shadows alone.

    Raises:
        DataError: The shadows are all IN or all OUT.
    """
    shadow_logits, members = signals.get("shadow_logits"), signals.mask("shadow_members")
    if members.all() or not members.any():
        raise DataError(
            "the trained attack has nothing to tell apart",
            where="shadow_members",
            expected="images IN some shadows and OUT of others",
            got="all the same",
        )
    target = _outputs(signals.floats("logits"), signals.labels)  # [N, K]
    shadows = np.stack([_outputs(one, signals.labels) for one in shadow_logits])
    shared = _fitted(shadows, members, config)
    scores = np.empty(len(target))
    for k in np.unique(signals.labels):
        rows = signals.labels == k
        inside = int(members[:, rows].sum())
        enough = min(inside, members[:, rows].size - inside) >= config.min_per_class
        model = _fitted(shadows[:, rows], members[:, rows], config) if enough else shared
        scores[rows] = model.decision_function(target[rows])
    return scores


def _outputs(logits: AnyFloats, labels: Labels) -> Floats:
    """Returns the label's scaled logit, then those of the other classes by size, [N,K]."""
    scaled = scaled_logits(logits).mean(axis=0)
    own = np.arange(scaled.shape[1]) == labels[:, None]
    others = -np.sort(np.where(own, np.inf, -scaled), axis=1)[:, :-1]
    return np.concatenate([of_label(scaled, labels)[:, None], others], axis=1)


def _fitted(outputs: Floats, members: Bools, config: Config) -> Pipeline:
    """Returns a classifier of outputs [S,N,K] into IN and OUT [S,N], both taken as equally many."""
    logistic = LogisticRegression(C=config.inverse_penalty, class_weight="balanced", max_iter=1000)
    model = make_pipeline(StandardScaler(), logistic)
    return model.fit(outputs.reshape(-1, outputs.shape[-1]), members.ravel())
