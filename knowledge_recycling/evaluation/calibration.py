"""Calibration by a single temperature (Guo et al. 2017, arXiv 1706.04599, section 4.2).

Shapes: N images, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.optimize import minimize_scalar

Floats = npt.NDArray[np.float64]

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Returns the probabilities [N,K] of logits [N,K] divided by a positive temperature.

    >>> softmax(np.array([[0.0, 0.0]]), temperature=3.0).tolist()
    [[0.5, 0.5]]
    """
    return np.asarray(special.softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1))


def fit_temperature(logits: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Returns the temperature in [0.05, 20] that minimises the negative log-likelihood.

    Above 1 the classifier was too sure of itself. To the labels one image is added that belongs to
    all classes alike, as in Platt (1999): without it a classifier that is right on every image
    would be told to be infinitely sure.

    Args:
        logits: [N,K], of images that the classifier was not trained on.
        labels: [N]

    >>> logits = np.tile([2.0, 0.0], (400, 1))  # odds of exp(2) to 1
    >>> labels = np.arange(400) % 4 // 3  # but right three times in four
    >>> bool(np.isclose(fit_temperature(logits, labels), 2 / np.log(3), rtol=0.01))
    True
    """
    logits = np.asarray(logits, dtype=np.float64)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        chances = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(np.sum(chances[rows, labels]) + np.mean(chances))

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
