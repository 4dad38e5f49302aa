"""A plain class-conditional DCGAN (Radford et al. 2016, arXiv 1511.06434), for comparison."""

from __future__ import annotations

from functools import partial

import torch
from lightning_fabric import Fabric
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers_env import PeerConfig
from knowledge_recycling.compute import place
from knowledge_recycling.models.adversarial import AdversarialObjective, LatentGenerator
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.models.latents import LATENT_KNOBS

KNOBS = LATENT_KNOBS
WIDTHS = range(8, 513, 8)
"""What `Config.width` may be."""


class Config(PeerConfig):
    """Two networks of mirrored shape, and their training with the paper's settings."""

    kind: str = __name__
    width: int = 64
    """Channels at half of the image's resolution; twice as many at a quarter of it."""
    latent_size: PositiveInt = 100
    learning_rate: float = 2e-4


class Generator(LatentGenerator):
    """Latent and label to an image by two transposed convolutions; sides are multiples of 4."""

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(shape, num_classes, config.latent_size)
        self.config = config
        channels, height, width = shape
        wide = 2 * config.width
        self.embed = nn.Embedding(num_classes, config.latent_size)
        self.network = nn.Sequential(
            nn.Linear(2 * config.latent_size, wide * (height // 4) * (width // 4)),
            nn.Unflatten(1, (wide, height // 4, width // 4)),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.ConvTranspose2d(wide, config.width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(config.width),
            nn.ReLU(),
            nn.ConvTranspose2d(config.width, channels, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        self.apply(normal_weights)

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Tensor, knobs: Knobs) -> Tensor:
        """Returns images [N,C,H,W] in [-1, 1] of the classes `labels` [N]."""
        self.config.arranged(self)
        return super().sample(labels, seeds, knobs)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Returns images [N,C,H,W] of latents [N,Z] and labels [N]."""
        images: Tensor = self.network(torch.cat([latent, self.embed(labels)], dim=1))
        return images


class Discriminator(nn.Module):
    """An image, with its label as one more channel, to a logit."""

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        wide = 2 * config.width
        self.embed = nn.Sequential(
            nn.Embedding(num_classes, height * width), nn.Unflatten(1, (1, height, width))
        )
        self.network = nn.Sequential(
            nn.Conv2d(channels + 1, config.width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(config.width, wide, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(wide * (height // 4) * (width // 4), 1),
        )
        self.apply(normal_weights)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns logits [N] of images [N,C,H,W] with labels [N]."""
        logits: Tensor = self.network(torch.cat([images, self.embed(labels)], dim=1))
        return logits[:, 0].float()


class Objective(AdversarialObjective):
    """The non-saturating loss, real and fake images in batches of their own."""

    def __init__(self, generator: Generator, config: Config, fabric: Fabric) -> None:
        discriminator = Discriminator(config, generator.shape, generator.num_classes)
        adam = partial(torch.optim.Adam, lr=config.learning_rate, betas=(0.5, 0.999))
        super().__init__(
            config.arranged(generator),
            config.arranged(place(discriminator, fabric)),
            fabric,
            (adam(generator.parameters()), adam(discriminator.parameters())),
        )

    def discriminator_loss(
        self, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the cross-entropy of telling real from fake images."""
        with self.fabric.autocast():
            with torch.no_grad():
                fakes = self.generator.draw(labels, rng).to(images)
            real, fake = self.discriminator(images, labels), self.discriminator(fakes, labels)
        loss = functional.softplus(-real).mean() + functional.softplus(fake).mean()
        return loss, {"loss": loss}

    def generator_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the cross-entropy of fake images taken for real ones."""
        with self.fabric.autocast():
            fakes = self.generator.draw(labels, rng).to(images)
            return functional.softplus(-self.discriminator(fakes, labels)).mean()


def normal_weights(module: nn.Module) -> None:
    """Draws the weights of convolutions from N(0, 0.02), as the paper does."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
