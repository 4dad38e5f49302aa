"""How well the generator explains an image, beside generators that never saw it.

The calibrated loss of GAN-Leaks (Chen 2020, arXiv 1909.03935, eq. 7); the loss is whatever the
generator has: a denoising or reconstruction error. Shapes: N images, S shadows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from knowledge_recycling.config import PluginConfig
from knowledge_recycling.errors import DataError
from knowledge_recycling.privacy.signals import Floats, Signals

NEEDS = ("losses",)
"""`calibrated` needs the shadows' losses and memberships too."""


class Config(PluginConfig):
    """Whether an image's own difficulty is taken off."""

    kind: Literal["generator_loss"] = "generator_loss"
    calibrated: bool = True
    """The mean loss of the shadows that an image is OUT of is taken off its loss."""


def score(signals: Signals, config: Config) -> Floats:
    """Returns minus the loss, calibrated: how much lower it is than that of OUT shadows, [N].

    Raises:
        DataError: An image has no OUT shadow.
    """
    losses = signals.floats("losses")
    if not config.calibrated:
        return -losses
    outside = ~signals.mask("shadow_members")
    if not outside.any(axis=0).all():
        raise DataError(
            "an image has no OUT shadow to calibrate its loss",
            where="shadow_members",
            expected="every image OUT of at least one shadow",
            next_step="train more shadows, or set calibrated=false",
        )
    return np.asarray(np.mean(signals.floats("shadow_losses"), axis=0, where=outside) - losses)
