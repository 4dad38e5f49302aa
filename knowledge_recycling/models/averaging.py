"""Weight averages whose width grows with the length of training."""

from __future__ import annotations

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
