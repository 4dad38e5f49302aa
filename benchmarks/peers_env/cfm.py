"""PyPI `torchcfm`: its class-conditional U-Net and conditional flow matching, Euler steps."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchcfm import ConditionalFlowMatcher
from torchcfm.models.unet import UNetModel

from benchmarks.peers_env import FlowLikeConfig
from knowledge_recycling.models.generators import flow
from knowledge_recycling.models.knobs import Knob, Knobs
from knowledge_recycling.models.latents import seeded_noise

KNOBS = {"steps": Knob(20, (5, 20, 50))}
WIDTHS = range(32, 257, 32)
"""What `Config.width` may be: the package normalises 32 groups of channels."""


class Config(FlowLikeConfig):
    """The U-Net."""

    kind: str = __name__
    width: int = Field(32, multiple_of=32)


class Generator(nn.Module):
    """The U-Net of the package's MNIST example, made cheaper: as wide at all of its three levels.

    And with attention at the coarsest level only, where the example has it on all 784 positions.
    Time and class scale what was normalised (the package's option): added before, as in the
    example, 32 groups of one channel each would take them out again, and did.
    """

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.network = UNetModel(
            dim=shape,
            num_channels=config.width,
            num_res_blocks=1,
            channel_mult=[1, 1, 1],
            num_classes=num_classes,
            class_cond=True,
            use_scale_shift_norm=True,
            attention_resolutions=str(shape[-1] // 4),
        )

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Tensor, knobs: Knobs) -> Tensor:
        """Returns images [N,C,H,W] in [-1, 1] of the classes `labels` [N]."""
        steps = int(knobs.get("steps", KNOBS["steps"].default))
        self.config.arranged(self)
        x = self.config.copied(seeded_noise(seeds, self.shape).to(labels.device))
        for step in range(steps):
            times = torch.full((len(x),), step / steps, device=x.device)
            x = x + self.network(times, x, labels).float() / steps
        return x.clamp(-1.0, 1.0)


class Objective(flow.Objective):
    """The package's matching of independent noise and images; optimiser and average of `flow`."""

    def __init__(self, generator: Generator, config: Config, fabric: Fabric) -> None:
        super().__init__(config.arranged(generator), config, fabric)

    def loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the loss of images [N,C,H,W] in [-1, 1] and labels [N]."""
        images = self.config.copied(images)
        noise = self.config.copied(torch.randn(images.shape, generator=rng).to(images.device))
        times = torch.rand(len(images), generator=rng).to(images)
        matcher = ConditionalFlowMatcher(sigma=0.0)
        t, x_t, target = matcher.sample_location_and_conditional_flow(noise, images, times)
        return functional.mse_loss(self.generator.network(t, x_t, labels).float(), target)
