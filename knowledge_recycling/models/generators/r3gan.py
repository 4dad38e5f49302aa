"""R3GAN: a modern one-step GAN, written from the paper (Huang et al. 2024, arXiv 2501.05441).

Relativistic pairing loss with zero-centred gradient penalties on real and fake images (section 3),
residual bottlenecks without normalisation, a start in the manner of Fix-up, leaky ReLU, bilinear
resampling and a learnt constant as the first map (section 4); labels enter both networks.

The paper's bottleneck is inverted, with grouped convolutions, whose double backward the penalties
need. On a CPU that is slow (docs/lab-book.md: a penalised step takes 9.5 forward passes, with plain
narrow ones 6.3), so there the default narrows and convolves plainly. Of the paper's schedules
(learning rate, penalty, averages) none is kept, since a generator's objective does not know the
length of training; the weight average adapts to it by itself.

Shapes: N images, C channels, H rows, W columns, Z numbers of a latent, D channels of a map.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling import ranks
from knowledge_recycling.compute import place
from knowledge_recycling.config import DERIVED, Facts, PluginConfig
from knowledge_recycling.data.augment import AugmentationName, augment
from knowledge_recycling.models.adversarial import (
    AdversarialObjective,
    LatentGenerator,
    derived_augmentations,
)
from knowledge_recycling.models.latents import LATENT_KNOBS
from knowledge_recycling.models.layers import Pyramid, cropped_to, padded_to, pyramid_of, zeroed

KNOBS = LATENT_KNOBS

SLOPE = 0.2
"""Of the leaky ReLU below zero."""
RECTIFIED = math.sqrt(2 / (1 + SLOPE**2))
"""What keeps the variance through a leaky ReLU (He et al. 2015)."""
MAX_MULTIPLE = 4
"""Channels of the coarsest maps, as a multiple of those of the finest."""

LayerT = TypeVar("LayerT", nn.Conv2d, nn.Linear)


class Config(PluginConfig):
    """R3GAN and its training."""

    kind: Literal["r3gan"] = "r3gan"
    width: PositiveInt = Field(DERIVED, multiple_of=8)
    """Channels of the finest maps, a multiple of 8, doubling down to 4 times as many; unset: 192 on
    a GPU (768 at the coarsest, as the paper has for CIFAR-10), 32 on a CPU."""
    depth: PositiveInt = 2
    """Residual blocks per resolution."""
    expansion: float = Field(DERIVED, gt=0)
    """Channels within a block, as a multiple of those outside; unset: 2 on a GPU, 0.5 on a CPU."""
    group_size: NonNegativeInt = DERIVED
    """Channels per group of the middle convolution, 0 without groups; unset: 16 on a GPU, 0 on a
    CPU."""
    latent_size: PositiveInt = 64
    """Numbers of a latent."""
    embedding_size: PositiveInt = 128
    """Numbers of a label's embedding in either network."""
    penalty: float = Field(0.1, ge=0)
    """Weight of the gradient penalties (gamma), each halved."""
    learning_rate: float = Field(DERIVED, gt=0)
    """Adam's, of both networks; unset: 2e-4 on a GPU, 5e-4 on a CPU."""
    augment: tuple[AugmentationName, ...] = DERIVED
    """Differentiable augmentations of all images that the discriminator sees; unset: `shift`,
    `cutout` and `intensity` for up to 5,000 images, none for more."""

    def derived(self, facts: Facts) -> dict[str, Any]:
        """Derives the paper's kind of block on a GPU, plain narrow ones on a CPU."""
        large = {"width": 192, "expansion": 2.0, "group_size": 16, "learning_rate": 2e-4}
        small = {"width": 32, "expansion": 0.5, "group_size": 0, "learning_rate": 5e-4}
        return (large if facts.on_gpu else small) | derived_augmentations(facts)


class Generator(LatentGenerator):
    """Latent and label to image: a learnt map of 4x4 positions, weighted by them, then upwards."""

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(shape, num_classes, config.latent_size)
        pyramid = pyramid_of(shape)
        channels = channels_of(config, pyramid)
        self.embed = nn.Embedding(num_classes, config.embedding_size)
        self.constant = nn.Parameter(nn.init.normal_(torch.empty(channels[0], *pyramid.base)))
        self.weigh = scaled(
            nn.Linear(config.latent_size + config.embedding_size, channels[0], bias=False)
        )
        self.stages = nn.Sequential(*blocks(config, channels[0], len(channels)))
        for inside, outside in itertools.pairwise(channels):
            self.stages.append(Resample(inside, outside, factor=2.0))
            self.stages.extend(blocks(config, outside, len(channels)))
        self.leave = scaled(nn.Conv2d(channels[-1], shape[0], 1, bias=False))

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Returns images [N,C,H,W], not bounded, of latents [N,Z] and labels [N]."""
        weights = self.weigh(torch.cat([latent, self.embed(labels)], dim=1))  # [N, D]
        x = self.constant * weights[:, :, None, None]
        x = self.stages(x.contiguous(memory_format=torch.channels_last))
        return cropped_to(self.leave(x), *self.shape[1:])


class Discriminator(nn.Module):
    """Image and label to a logit, larger = more likely real; the mirror of the generator."""

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        pyramid = pyramid_of(shape)
        channels = channels_of(config, pyramid)[::-1]
        self.unit = pyramid.unit
        self.stages = nn.Sequential(scaled(nn.Conv2d(shape[0], channels[0], 1, bias=False)))
        for inside, outside in itertools.pairwise(channels):
            self.stages.extend(blocks(config, inside, len(channels)))
            self.stages.append(Resample(inside, outside, factor=0.5))
        self.stages.extend(blocks(config, channels[-1], len(channels)))
        positions = torch.empty(channels[-1], *pyramid.base)
        self.reader = nn.Parameter(nn.init.normal_(positions, std=pyramid.base_size**-0.5))
        self.leave = scaled(nn.Linear(channels[-1], config.embedding_size, bias=False))
        self.embed = nn.Embedding(num_classes, config.embedding_size)
        nn.init.normal_(self.embed.weight, std=config.embedding_size**-0.5)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the logits [N] of images [N,C,H,W] and labels [N]."""
        x = self.stages(padded_to(images, self.unit))
        x = self.leave((x * self.reader).sum(dim=(2, 3)))  # [N, embedding_size]
        logits: Tensor = (x * self.embed(labels)).sum(dim=1)
        return logits


def channels_of(config: Config, pyramid: Pyramid) -> list[int]:
    """Returns the channels of each resolution, the coarsest first."""
    multiples = [min(MAX_MULTIPLE, pyramid.sides[-1] // side) for side in pyramid.sides]
    return [config.width * multiple for multiple in multiples]


def blocks(config: Config, channels: int, num_levels: int) -> list[Block]:
    """Returns the blocks of one of `num_levels` resolutions."""
    return [Block(config, channels, config.depth * num_levels) for _ in range(config.depth)]


class Block(nn.Module):
    """Residual bottleneck without normalisation (figure 3, right; section 4.2).

    The last convolution starts at zero and the others at He's gain times L^(-1/4) with L blocks in
    all, so that the network starts as its resampling alone (Fix-up, arXiv 1901.09321).
    """

    def __init__(self, config: Config, channels: int, num_blocks: int) -> None:
        super().__init__()
        inner = 8 * max(1, round(config.expansion * channels / 8))
        groups = inner // math.gcd(inner, config.group_size) if config.group_size else 1
        gain = num_blocks**-0.25
        self.squeeze = scaled(nn.Conv2d(channels, inner, 1), gain * RECTIFIED)
        self.middle = scaled(nn.Conv2d(inner, inner, 3, padding=1, groups=groups), gain * RECTIFIED)
        self.expand = zeroed(nn.Conv2d(inner, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` [N,D,H,W] plus its residual."""
        hidden = functional.leaky_relu(self.squeeze(x), SLOPE)
        hidden = functional.leaky_relu(self.middle(hidden), SLOPE)
        residual: Tensor = self.expand(hidden)
        return x + residual


class Resample(nn.Module):
    """Bilinear resampling, then a 1x1 convolution where the number of channels changes."""

    def __init__(self, inside: int, outside: int, *, factor: float) -> None:
        super().__init__()
        self.factor = factor
        changes = inside != outside
        self.change = scaled(nn.Conv2d(inside, outside, 1, bias=False)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns maps [N,D,H,W], larger by `factor`."""
        if self.change is not None and self.factor > 1:  # the two commute: on the smaller map
            x = self.change(x)
        if self.factor > 1:
            x = functional.interpolate(x, scale_factor=self.factor, mode="bilinear")
        else:  # what bilinear interpolation does at half the size, with a fast double backward
            x = functional.avg_pool2d(x, round(1 / self.factor))
        return self.change(x) if self.change is not None and self.factor < 1 else x


def scaled(layer: LayerT, gain: float = 1.0) -> LayerT:
    """Returns `layer` with weights that keep the variance of its input, times `gain` squared."""
    nn.init.normal_(layer.weight, std=gain * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Objective(AdversarialObjective):
    """Relativistic losses, the discriminator's with gradient penalties."""

    def __init__(self, generator: Generator, config: Config, fabric: Fabric) -> None:
        discriminator = Discriminator(config, generator.shape, generator.num_classes)
        adam = partial(torch.optim.Adam, lr=config.learning_rate, betas=(0.0, 0.99))
        super().__init__(
            generator,
            place(discriminator, fabric),
            fabric,
            (adam(generator.parameters()), adam(discriminator.parameters())),
        )
        self.config = config

    def discriminator_loss(
        self, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the pairing loss plus half of gamma times both penalties.

        Reported are `loss`, the first alone, and the penalties, `real_penalty` and `fake_penalty`:
        mean squared norms of the gradients at real and at fake images. All is in fp32: squares of
        second derivatives lose too much in bf16.
        """
        with torch.no_grad(), self.fabric.autocast():
            fakes = self.generator.draw(labels, rng).to(images)
        both = augment(torch.cat([images, fakes]), self.config.augment, rng)
        both, labels = ranks.shard(both, labels.repeat(2))
        both.requires_grad_()  # the penalty is on what the discriminator sees
        logits = self.discriminator(both, labels)
        (gradients,) = torch.autograd.grad(logits.sum(), both, create_graph=True)
        at_real, at_fake = gradients.square().sum(dim=(1, 2, 3)).view(2, -1).mean(dim=1)
        loss = pairing_loss(*logits.chunk(2))
        measures = {"loss": loss, "real_penalty": at_real, "fake_penalty": at_fake}
        return loss + self.config.penalty / 2 * (at_real + at_fake), measures

    def generator_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the pairing loss with real and fake images in each other's place."""
        with self.fabric.autocast():
            fakes = self.generator.draw(labels, rng).to(images)
            both = augment(torch.cat([images, fakes]), self.config.augment, rng)
            seen = ranks.shard(both, labels.repeat(2))
            real, fake = self.discriminator(*seen).float().chunk(2)
        return pairing_loss(fake, real)


def pairing_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Returns the mean of log(1 + exp(-(better - worse))) over pairs of logits [N] (equation 2)."""
    return functional.softplus(worse - better).mean()
