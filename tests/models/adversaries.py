"""A few images of three classes, and objectives of small GANs to show them to."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric

from knowledge_recycling.config import PluginConfig
from knowledge_recycling.models.build import build_generator, build_objective

SHAPE = (1, 8, 8)
IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def objective_of(config: PluginConfig, fabric: Fabric, **changes: Any) -> Any:
    config = config.model_copy(update=changes)
    generator = build_generator(config, SHAPE, 3, fabric=fabric, seed=0, name="g")
    return build_objective(generator, config, fabric=fabric, seed=0, name="g")
