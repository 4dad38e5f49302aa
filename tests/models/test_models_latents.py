"""Latents against SciPy's truncated normal law, and noise against the standard normal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from knowledge_recycling.models.latents import LATENT_KNOBS, latents, seeded_noise

SEEDS = torch.arange(200)


def test_noise_is_standard_normal_and_each_image_has_its_own_seed() -> None:
    noise = seeded_noise(torch.arange(256), (1, 8, 8))
    assert abs(noise.mean()) < 5 / math.sqrt(noise.numel())
    assert abs(noise.std() - 1) < 5 / math.sqrt(2 * noise.numel())
    torch.testing.assert_close(seeded_noise(torch.tensor([7]), (1, 8, 8))[0], noise[7])


@pytest.mark.parametrize("truncation", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("std", [1.0, 1.5])
def test_latents_follow_the_truncated_normal_law(truncation: float, std: float) -> None:
    drawn = latents(SEEDS, 64, {"truncation": truncation, "latent_std": std})
    law = stats.truncnorm(-truncation, truncation, scale=std)
    assert drawn.shape == (200, 64)
    assert drawn.abs().max() <= std * truncation
    assert stats.kstest(drawn.flatten().numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("truncation", [0.5, 1.0, 4.0])
def test_truncation_maps_quantile_to_quantile(truncation: float) -> None:
    noise = seeded_noise(SEEDS, (8,)).double().numpy()
    expected = stats.truncnorm(-truncation, truncation).ppf(stats.norm.cdf(noise))
    drawn = latents(SEEDS, 8, {"truncation": truncation}).numpy()
    np.testing.assert_allclose(drawn, expected, atol=1e-6)


def test_the_default_truncation_hardly_moves_a_latent() -> None:
    moved = (latents(SEEDS, 64, {}) - seeded_noise(SEEDS, (64,))).abs()
    assert (moved > 0.01).float().mean() < 1 / 300
    assert LATENT_KNOBS["truncation"].tuned is False
