"""Randomness has names: every stream is derived from the run's seed and the names of its use.

The global generators of Python, NumPy and torch are never used, so no stage can disturb another
and batch i is a function of (seed, i) alone: resuming needs no saved generator state.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

Name = str | int


def named_seed(seed: int, *names: Name) -> int:
    """Returns a seed in [0, 2**63) from SHA-256 of the run's seed and the names of the stream.

    >>> named_seed(0, "student", 3) == named_seed(0, "student", 3)
    True
    >>> named_seed(0, "student", 3) == named_seed(0, "student", 4)
    False
    """
    text = "/".join(f"{type(name).__name__}:{name}" for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: Name, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns the torch generator of the named stream on `device`."""
    return torch.Generator(device).manual_seed(named_seed(seed, *names))


def numpy_rng(seed: int, *names: Name) -> np.random.Generator:
    """Returns the NumPy generator of the named stream."""
    return np.random.default_rng(named_seed(seed, *names))
