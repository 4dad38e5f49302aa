"""Weight averages whose width grows with the length of training, and what learns with one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]

EXPONENT = 9.0
"""About a tenth of training so far is averaged (Karras et al. 2024, sigma_rel near 0.09)."""


def power_average(model: nn.Module) -> AveragedModel:
    """Returns a moving average of `model`; call its `update_parameters` after each step.

    The power-function EMA (Karras et al. 2024, arXiv 2312.02696, equation 1): step t keeps
    beta_t = (1 - 1/t)^(EXPONENT + 1) of the average, so the first weights are forgotten however
    short the training, and no constant has to fit its length. Buffers are averaged too.
    """
    return AveragedModel(model, multi_avg_fn=_average, use_buffers=True)


@torch.no_grad()
def _average(averaged: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
    if not averaged[0].is_floating_point():  # counters, such as those of batch normalisation
        torch._foreach_copy_(averaged, current)
        return
    kept = (1.0 - 1.0 / (float(num_averaged) + 1.0)) ** (EXPONENT + 1.0)
    torch._foreach_lerp_(averaged, current, 1.0 - kept)


class AveragingObjective:
    """Base of objectives: the weight average of what learns, and all that resuming needs."""

    STATEFUL: ClassVar[tuple[str, ...]]
    """Attributes whose states a resumed training needs beside the average's: models, optimisers."""

    def __init__(self, model: nn.Module) -> None:
        self.average = power_average(model)
        self.steps = 0

    def averaged(self) -> nn.Module:
        """Returns the model with averaged weights: what a snapshot or a candidate saves."""
        return self.average.module

    def state_dict(self) -> dict[str, Any]:
        """Returns all that resuming needs."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return states | {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.steps = state["steps"]

    def _parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*self.STATEFUL, "average")}
