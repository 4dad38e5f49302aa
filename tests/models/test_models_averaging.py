"""The power-function average against the weighted sum that its equation stands for.

Unrolling beta_t = (1 - 1/t)^(g + 1) gives step s of t the weight (1 - beta_s) * product of the
betas after it, near (g + 1) s^g / t^(g + 1): Karras et al. 2024, arXiv 2312.02696, equation 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from knowledge_recycling.models.averaging import EXPONENT, power_average


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def become(self, value: torch.Tensor) -> None:
        self.weight.data = value.clone()
        self.mean.fill_(float(value.sum()))
        self.count += 1


def explicit_weights(steps: int) -> np.ndarray:
    betas = [(1 - 1 / t) ** (EXPONENT + 1) for t in range(1, steps + 1)]
    return np.array([(1 - betas[s]) * np.prod(betas[s + 1 :]) for s in range(steps)])


def averaged_over(values: torch.Tensor) -> nn.Module:
    model = Model()
    average = power_average(model)
    for value in values:
        model.become(value)
        average.update_parameters(model)
    return average.module


def test_the_average_is_the_explicit_weighted_sum() -> None:
    values = torch.randn(40, 3, dtype=torch.float64)
    weights = torch.from_numpy(explicit_weights(40))
    module = averaged_over(values)
    torch.testing.assert_close(module.weight.data, weights @ values)
    torch.testing.assert_close(module.mean, (weights @ values).sum())


def test_the_weights_sum_to_one_and_follow_the_power_law() -> None:
    weights = explicit_weights(2000)
    assert abs(weights.sum() - 1) < 1e-12
    steps = np.arange(1, 2001)
    law = (EXPONENT + 1) * steps**EXPONENT / 2000.0 ** (EXPONENT + 1)
    np.testing.assert_allclose(weights[1000:], law[1000:], rtol=0.02)


def test_the_first_weights_are_forgotten_however_short_the_training() -> None:
    values = torch.zeros(10, 3, dtype=torch.float64)
    values[0] = 1e3
    assert averaged_over(values).weight.abs().max() < 1e-6
    initial = torch.full((1, 3), 5.0, dtype=torch.float64)
    assert torch.equal(averaged_over(initial).weight.data, initial[0])


def test_counters_are_copied_and_the_model_is_not_touched() -> None:
    values = torch.randn(7, 3, dtype=torch.float64)
    model = Model()
    average = power_average(model)
    for value in values:
        model.become(value)
        average.update_parameters(model)
    assert average.module.count == 7
    assert torch.equal(model.weight.data, values[-1])
    assert not average.module.count.is_floating_point()
