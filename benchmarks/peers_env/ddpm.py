"""PyPI `denoising-diffusion-pytorch`: its class-conditional U-Net, diffusion and DDIM sampler."""

from __future__ import annotations

import torch
from denoising_diffusion_pytorch.classifier_free_guidance import GaussianDiffusion, Unet
from lightning_fabric import Fabric
from torch import Tensor, nn

from benchmarks.peers_env import FlowLikeConfig
from knowledge_recycling.models.generators import flow
from knowledge_recycling.models.knobs import Knob, Knobs

KNOBS = {"steps": Knob(20, (5, 20, 50))}
WIDTHS = range(8, 257, 4)
"""What `Config.width` may be."""


class Config(FlowLikeConfig):
    """The U-Net."""

    kind: str = __name__
    width: int = 16


class Conditional(Unet):
    """The U-Net without guidance: the package's own path for a scale of 1 fails in its sampler."""

    def forward_with_cond_scale(self, *args: Tensor, **_: float) -> tuple[Tensor, Tensor]:
        """Returns the conditional output where those with and without guidance are wanted."""
        output = self(*args, cond_drop_prob=0.0)
        return output, output


class Generator(nn.Module):
    """Diffusion on [0, 1] images with the package's defaults, labels hidden as often as in `flow`.

    Three of its four levels, since 28 px halve twice; the velocity objective is the default of the
    package's main module, and better with few steps than that of its module with labels.
    """

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.config = config
        unet = Conditional(
            config.width,
            num_classes,
            cond_drop_prob=flow.Config().label_dropout,
            dim_mults=(1, 2, 4),
            channels=shape[0],
        )
        self.diffusion = GaussianDiffusion(
            unet,
            image_size=shape[-1],
            objective="pred_v",
            sampling_timesteps=int(KNOBS["steps"].default),
            ddim_sampling_eta=0.0,
        )

    @property
    def network(self) -> nn.Module:
        """What is evaluated in each step."""
        return self.diffusion.model

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Tensor, knobs: Knobs) -> Tensor:
        """Returns images [N,C,H,W] in [-1, 1] of the classes `labels` [N]."""
        self.config.arranged(self)
        self.diffusion.sampling_timesteps = int(knobs.get("steps", KNOBS["steps"].default))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seeds[0]))
            images: Tensor = self.diffusion.sample(labels, cond_scale=1.0)
        return images.float() * 2 - 1


class Objective(flow.Objective):
    """The package's loss; optimiser and weight average of `flow`."""

    def __init__(self, generator: Generator, config: Config, fabric: Fabric) -> None:
        super().__init__(config.arranged(generator), config, fabric)

    def loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the loss of images [N,C,H,W] in [-1, 1] and labels [N]."""
        diffusion = self.generator.diffusion
        noise = torch.randn(images.shape, generator=rng).to(images.device)
        times = torch.randint(diffusion.num_timesteps, (len(images),), generator=rng)
        kept = torch.rand(len(images), generator=rng) >= diffusion.model.cond_drop_prob
        loss: Tensor = diffusion(
            self.config.copied((images + 1) / 2),
            classes=labels,
            times=times.to(labels),
            noise=noise,
            cond_keep_mask=kept.to(labels.device),
        )
        return loss
