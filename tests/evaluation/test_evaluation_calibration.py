"""Fitted temperatures against those the data were simulated with and against a fine grid; softmax
against torch.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from knowledge_recycling.evaluation.calibration import fit_temperature, softmax


def simulate(temperature, num=20_000, num_classes=5, seed=0):
    """Returns logits [N,K] that are `temperature` times too large, and labels [N]."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(num, num_classes)) * 2
    labels = (honest + rng.gumbel(size=honest.shape)).argmax(axis=1)
    return honest * temperature, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_fit_recovers_the_temperature_of_simulated_data(temperature):
    assert fit_temperature(*simulate(temperature)) == pytest.approx(temperature, rel=0.03)


def test_fit_is_the_best_of_a_grid():
    logits, labels = simulate(1.7, num=3000)
    grid = np.exp(np.linspace(np.log(0.5), np.log(5), 400))

    def loss(temperature):
        return torch.nn.functional.cross_entropy(
            torch.from_numpy(logits / temperature), torch.from_numpy(labels)
        )

    best = min(grid, key=loss)
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=0.01)


def test_fit_scales_with_the_logits_and_leaves_them_unchanged():
    logits, labels = simulate(1.0, num=500)
    before = logits.copy()
    assert fit_temperature(3 * logits, labels) == pytest.approx(
        3 * fit_temperature(logits, labels), rel=1e-4
    )
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("num", [30, 300])
def test_a_classifier_that_is_always_right_is_not_made_infinitely_sure(num):
    labels = np.arange(num) % 3
    logits = 4.0 * np.eye(3)[labels]
    temperature = fit_temperature(logits, labels)
    doubt = 1 - softmax(logits, temperature).max(axis=1).mean()
    assert doubt == pytest.approx(2 / 3 / (num + 1), rel=0.01)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_result_stays_within_its_bounds(sign):
    logits = sign * 1e-3 * np.eye(2)[np.arange(100) % 2]
    temperature = fit_temperature(logits, np.arange(100) % 2)
    assert temperature == pytest.approx(0.05 if sign > 0 else 20.0, rel=1e-3)


def test_softmax_is_torchs():
    logits = np.random.default_rng(0).normal(size=(20, 4)) * 300
    expected = torch.softmax(torch.from_numpy(logits) / 1.5, dim=1).numpy()
    np.testing.assert_allclose(softmax(logits, 1.5), expected, rtol=1e-12)
    assert softmax(logits.astype(np.float32)).dtype == np.float64
