"""Small images, networks and surroundings that the tests of several folders share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from knowledge_recycling.compute import ComputeConfig, make_fabric
from knowledge_recycling.config import Facts
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.progress import SilentReporter

Shape = tuple[int, int, int]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draws that name no generator are the same in every run and order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    return make_fabric(ComputeConfig(accelerator="cpu", precision="32-true", threads=1))


@pytest.fixture
def context(fabric: Fabric) -> Context:
    return Context(fabric, seed=0, reporter=SilentReporter())


@pytest.fixture(scope="session")
def make_set() -> Callable[..., ImageSet]:
    """Makes sets of noise whose left column carries the label as its grey value."""

    def make(size: int = 24, num_classes: int = 2, shape: Shape = (1, 8, 8)) -> ImageSet:
        random = np.random.default_rng(size)
        labels = np.arange(size, dtype=np.int64) % num_classes
        images = random.integers(0, 256, (size, *shape), dtype=np.uint8)
        images[..., 0] = (labels * (255 // (num_classes - 1)))[:, None, None]
        return ImageSet(images, labels, tuple(f"class {k}" for k in range(num_classes)))

    return make


@pytest.fixture(scope="session")
def make_facts() -> Callable[..., Facts]:
    def make(**changes: Any) -> Facts:
        usual: dict[str, Any] = {
            "num_train": 64,
            "num_val": 16,
            "shape": (1, 8, 8),
            "num_classes": 2,
            "smallest_class": 32,
            "symmetries": (),
            "on_gpu": False,
        }
        return Facts(**(usual | changes))

    return make
