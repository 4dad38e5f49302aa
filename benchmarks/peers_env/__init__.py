"""Generators of other packages as kinds of ours, for `benchmarks.peers`; they need its environment.

Each trains through the project's loop, on its batches, in its precision, with its weight average;
networks, losses and samplers are the peers' own. Unlike the project's kinds an image may depend on
the batch it is drawn in.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from knowledge_recycling.compute import ModuleT
from knowledge_recycling.config import PluginConfig

FORMATS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
"""What the project uses for all its networks, and what torch and the peers do by default."""


class PeerConfig(PluginConfig):
    """What all peers have in common."""

    width: PositiveInt
    """Channels of the finest level; chosen for as many operations as the project's generator."""
    layout: Literal["channels-last", "contiguous"] = "contiguous"
    """Memory layout of kernels and images: the faster one depends on the peer's layers."""

    def arranged(self, module: ModuleT) -> ModuleT:
        """Returns `module`, its kernels in the layout, whatever they were in."""
        module.to(memory_format=FORMATS[self.layout])  # type: ignore[call-overload]
        return module

    def copied(self, images: Tensor) -> Tensor:
        """Returns a copy of `images` [N,C,H,W] in the layout: grey ones are in both at once."""
        return images.clone(memory_format=FORMATS[self.layout])


class FlowLikeConfig(PeerConfig):
    """Of peers that are trained by the optimiser of `flow`, with its settings."""

    learning_rate: float = 1e-3
    warmup_steps: PositiveInt = 100
