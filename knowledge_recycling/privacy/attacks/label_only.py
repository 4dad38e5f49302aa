"""How robust the predicted label is to augmentation (Choquette-Choo 2021, arXiv 2007.14321).

Shapes: N images, K classes, Q queries.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from knowledge_recycling.config import PluginConfig
from knowledge_recycling.privacy.signals import Floats, Signals

NEEDS = ("logits",)


class Config(PluginConfig):
    """Sees the predicted classes alone; nothing to set."""

    kind: Literal["label_only"] = "label_only"


def score(signals: Signals, config: Config) -> Floats:
    """Returns the share of the queries whose predicted class is the label, [N].

    With a single query that is the gap attack: whatever is classified rightly is called a member.
    """
    del config
    predicted = signals.get("logits").argmax(axis=-1)  # [Q, N]
    return np.asarray(np.mean(predicted == signals.labels, axis=0), dtype=np.float64)
