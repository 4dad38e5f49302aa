"""BigGAN-deep: a class-conditional GAN with spectral normalisation (Brock et al. 2019).

Blocks, shared embedding, skip-z by concatenation, projection discriminator, hinge loss and standing
statistics follow arXiv 1809.11096, appendices B and C.4; differentiable augmentation for small sets
follows Zhao et al. 2020, arXiv 2006.10738. At 32 px the default on a GPU is the published network;
on a CPU the same network is narrower.

Shapes: N images, C channels, H rows, W columns, Z numbers of a latent, E of condition (latent and
embedded label), D channels.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from knowledge_recycling import ranks
from knowledge_recycling.compute import place
from knowledge_recycling.config import DERIVED, Facts, PluginConfig
from knowledge_recycling.data.augment import AugmentationName, augment
from knowledge_recycling.models.adversarial import (
    AdversarialObjective,
    LatentGenerator,
    derived_augmentations,
)
from knowledge_recycling.models.latents import LATENT_KNOBS, latents
from knowledge_recycling.models.layers import cropped_to, padded_to, pyramid_of

KNOBS = LATENT_KNOBS

EPSILON = 1e-6
"""Of Adam and of the spectral norm, as published."""
ATTENTION_SIDE = 16
"""Attention looks at maps of this many positions per side, or the largest below."""
STANDING_BATCHES, WARM_BATCHES, STANDING_SIZE = 16, 4, 64
"""Batches behind the statistics of the averaged generator, those before them, and their images."""

LayerT = TypeVar("LayerT", nn.Conv2d, nn.Linear, nn.Embedding)


class Config(PluginConfig):
    """BigGAN-deep and its training."""

    kind: Literal["biggan"] = "biggan"
    width: PositiveInt = Field(DERIVED, multiple_of=8)
    """Channel multiplier, a multiple of 8: maps up to 32 px have 4 times as many channels, those of
    64 px twice as many; unset: 128 as published on a GPU, 24 on a CPU."""
    depth: PositiveInt = DERIVED
    """Residual blocks per resolution; unset: 2 as published on a GPU, 1 on a CPU."""
    latent_size: PositiveInt = 128
    """Numbers of a latent."""
    embedding_size: PositiveInt = 128
    """Numbers of the embedding of a label that all blocks share."""
    discriminator_steps: PositiveInt = 3
    """Steps of the discriminator, each on a batch of its own, per step of the generator (3 in GaFi,
    arXiv 2305.10118)."""
    learning_rate: float = Field(DERIVED, gt=0)
    """Adam's, of the generator; unset: 2e-4 as in GaFi on a GPU, 5e-4 on a CPU."""
    discriminator_learning_rate: float = Field(DERIVED, gt=0)
    """Adam's, of the discriminator; unset: 2e-4 as in GaFi on a GPU; 2e-3 on a CPU, 4 times the
    generator's, the published ratio."""
    augment: tuple[AugmentationName, ...] = DERIVED
    """Differentiable augmentations of all images that the discriminator sees; unset: `shift`,
    `cutout` and `intensity` for up to 5,000 images, none for more."""

    def derived(self, facts: Facts) -> dict[str, Any]:
        """Derives published sizes on a GPU, sizes that finish in minutes on a CPU."""
        if facts.on_gpu:
            sizes = {"width": 128, "depth": 2}
            rates = {"learning_rate": 2e-4, "discriminator_learning_rate": 2e-4}
        else:
            sizes = {"width": 24, "depth": 1}
            rates = {"learning_rate": 5e-4, "discriminator_learning_rate": 2e-3}
        return sizes | rates | derived_augmentations(facts)


class Generator(LatentGenerator):
    """Latent and label to image, from 4x4 positions up."""

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(shape, num_classes, config.latent_size)
        plan = Plan(config, shape)
        condition = config.latent_size + config.embedding_size
        self.base = plan.pyramid.base
        self.embed = nn.Embedding(num_classes, config.embedding_size)
        self.enter = spectral(nn.Linear(condition, plan.channels[0] * plan.pyramid.base_size))
        self.stages = nn.ModuleList()
        for level, outside in enumerate(plan.channels[1:]):
            inside = plan.channels[level]
            self.stages.extend(UpBlock(inside, inside, condition) for _ in range(config.depth - 1))
            self.stages.append(UpBlock(inside, outside, condition, factor=2))
            if level + 1 == plan.attention:
                self.stages.append(Attention(outside))
        last = plan.channels[-1]
        self.leave = nn.Sequential(
            nn.BatchNorm2d(last), nn.ReLU(), spectral(nn.Conv2d(last, shape[0], 3, padding=1))
        )

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Returns images [N,C,H,W] in [-1, 1] of latents [N,Z] and labels [N]."""
        condition = torch.cat([latent, self.embed(labels)], dim=1)  # [N, E]
        x = self.enter(condition).view(len(latent), -1, *self.base)
        x = x.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x, condition)
        return cropped_to(self.leave(x).tanh(), *self.shape[1:])


class Discriminator(nn.Module):
    """Image and label to a logit, larger = more likely real; the mirror of the generator."""

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        plan = Plan(config, shape)
        self.unit = plan.pyramid.unit
        channels = plan.channels[::-1]
        self.stages = nn.Sequential(spectral(nn.Conv2d(shape[0], channels[0], 3, padding=1)))
        for level, (inside, outside) in enumerate(itertools.pairwise(channels)):
            if len(channels) - 1 - level == plan.attention:
                self.stages.append(Attention(inside))
            self.stages.append(DownBlock(inside, outside, factor=2))
            self.stages.extend(DownBlock(outside, outside) for _ in range(config.depth - 1))
        self.leave = spectral(nn.Linear(channels[-1], 1))
        self.embed = spectral(nn.Embedding(num_classes, channels[-1]))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the logits [N] of images [N,C,H,W] in [-1, 1] and labels [N]."""
        x = functional.relu(self.stages(padded_to(images, self.unit))).sum(dim=(2, 3))  # [N, D]
        logits: Tensor = self.leave(x).squeeze(1) + (x * self.embed(labels)).sum(dim=1)
        return logits


class Plan:
    """How maps grow: channels of each resolution from the coarsest, and where attention is."""

    def __init__(self, config: Config, shape: tuple[int, int, int]) -> None:
        self.pyramid = pyramid_of(shape)
        sides = self.pyramid.sides
        self.channels = [config.width * max(1, 4 * 32 // max(32, side)) for side in sides]
        self.attention = max(i for i, side in enumerate(sides) if side <= ATTENTION_SIDE)
        """Index of the resolution."""


class UpBlock(nn.Module):
    """Residual block of the generator (figure 16, left); channels in excess are dropped."""

    def __init__(self, inside: int, outside: int, condition: int, *, factor: int = 1) -> None:
        super().__init__()
        hidden = inside // 4
        self.outside = outside
        self.factor = factor
        self.norms = nn.ModuleList(
            ConditionalNorm(channels, condition) for channels in (inside, hidden, hidden, hidden)
        )
        self.squeeze = spectral(nn.Conv2d(inside, hidden, 1))
        self.conv1 = spectral(nn.Conv2d(hidden, hidden, 3, padding=1))
        self.conv2 = spectral(nn.Conv2d(hidden, hidden, 3, padding=1))
        self.expand = spectral(nn.Conv2d(hidden, outside, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns maps [N,D,H,W], `factor` times as large, given `condition` [N,E]."""
        norm1, norm2, norm3, norm4 = self.norms
        hidden = functional.relu(norm2(self.squeeze(norm1(x, condition).relu()), condition))
        hidden = self.conv1(enlarged(hidden, self.factor))
        hidden = self.conv2(norm3(hidden, condition).relu())
        residual: Tensor = self.expand(norm4(hidden, condition).relu())
        return enlarged(x[:, : self.outside], self.factor) + residual


class DownBlock(nn.Module):
    """Residual block of the discriminator (figure 16, right); a 1x1 convolution adds channels."""

    def __init__(self, inside: int, outside: int, *, factor: int = 1) -> None:
        super().__init__()
        hidden = outside // 4
        self.factor = factor
        self.squeeze = spectral(nn.Conv2d(inside, hidden, 1))
        self.conv1 = spectral(nn.Conv2d(hidden, hidden, 3, padding=1))
        self.conv2 = spectral(nn.Conv2d(hidden, hidden, 3, padding=1))
        self.expand = spectral(nn.Conv2d(hidden, outside, 1))
        more = outside - inside
        self.more = spectral(nn.Conv2d(inside, more, 1)) if more > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns maps [N,D,H,W], smaller by `factor`."""
        hidden = self.conv1(self.squeeze(x.relu()).relu())
        hidden = functional.avg_pool2d(self.conv2(hidden.relu()).relu(), self.factor)
        residual: Tensor = self.expand(hidden)
        x = functional.avg_pool2d(x, self.factor)
        return residual + (x if self.more is None else torch.cat([x, self.more(x)], dim=1))


class ConditionalNorm(nn.Module):
    """Batch normalisation whose gains and biases come from the condition."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.modulate = spectral(nn.Linear(condition, 2 * channels, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns `x` [N,D,H,W] normalised, given `condition` [N,E]."""
        gain, bias = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
        normal: Tensor = self.norm(x)
        return torch.addcmul(bias, normal, 1 + gain)


class Attention(nn.Module):
    """Residual self-attention over positions (Zhang et al. 2019, arXiv 1805.08318, section 3).

    Keys and values are pooled by two, as in BigGAN.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        keys, values = max(1, channels // 8), channels // 2
        self.query = spectral(nn.Conv2d(channels, keys, 1, bias=False))
        self.key = spectral(nn.Conv2d(channels, keys, 1, bias=False))
        self.value = spectral(nn.Conv2d(channels, values, 1, bias=False))
        self.out = spectral(nn.Conv2d(values, channels, 1, bias=False))
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Returns `x` [N,D,H,W] plus what its positions gather; the condition is not looked at."""
        del condition
        query = self.query(x).flatten(2).transpose(1, 2)  # [N, H*W, keys]
        key = functional.max_pool2d(self.key(x), 2).flatten(2).transpose(1, 2)
        value = functional.max_pool2d(self.value(x), 2).flatten(2).transpose(1, 2)
        gathered = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        maps = gathered.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
        residual: Tensor = self.out(maps.contiguous(memory_format=torch.channels_last))
        return x + self.gain * residual


def spectral(layer: LayerT) -> LayerT:
    """Returns `layer` with an orthogonal start and its weight divided by its largest gain."""
    nn.init.orthogonal_(layer.weight)
    spectral_norm(layer, eps=EPSILON)
    return layer


def enlarged(x: Tensor, factor: int) -> Tensor:
    """Returns maps [N,D,H,W] with each position repeated `factor` times along both sides."""
    return functional.interpolate(x, scale_factor=factor) if factor > 1 else x


class Objective(AdversarialObjective):
    """Hinge losses; the averaged generator gets statistics of its own."""

    def __init__(self, generator: Generator, config: Config, fabric: Fabric) -> None:
        discriminator = Discriminator(config, generator.shape, generator.num_classes)
        super().__init__(
            generator,
            place(discriminator, fabric),
            fabric,
            (
                adam(generator, config.learning_rate),
                adam(discriminator, config.discriminator_learning_rate),
            ),
            config.discriminator_steps,
        )
        self.config = config

    def discriminator_loss(
        self, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the hinge loss, and the mean logits of `real` and `fake` images beside it.

        Means beyond 1 and -1 say that the discriminator has won, near each other that it has lost.
        """
        with self.fabric.autocast():
            real, fake = self.logits(images, labels, rng)
            loss = functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
        return loss, {"loss": loss, "real": real.mean(), "fake": fake.mean()}

    def logits(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the logits [N] of real images, and [N] of as many fake ones of their labels."""
        with torch.no_grad():
            fakes = self.generator.draw(labels, rng).to(images)
        seen = augment(torch.cat([images, fakes]), self.config.augment, rng)
        real, fake = self.discriminator(*ranks.shard(seen, labels.repeat(2))).float().chunk(2)
        return real, fake

    def generator_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Returns minus the mean logit of new images of the labels; the real ones say nothing."""
        with self.fabric.autocast():
            fakes = self.generator.draw(labels, rng).to(images)
            seen = augment(fakes, self.config.augment, rng)
            logits: Tensor = self.discriminator(*ranks.shard(seen, labels))
        return -logits.float().mean()

    def averaged(self) -> nn.Module:
        """Returns the generator with averaged weights and statistics that fit them."""
        return with_standing_statistics(copy.deepcopy(self.average.module))


def adam(network: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """Returns the optimiser of `network` with the published settings."""
    return torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.5, 0.999), eps=EPSILON)


@torch.no_grad()
def with_standing_statistics(generator: nn.Module) -> nn.Module:
    """Returns `generator` in eval mode, its batch normalisation fitted to its present weights.

    Means and variances over batches of fixed latents, all classes alike (standing statistics, Brock
    et al. 2019, appendix C.4): averages of what earlier weights gave do not fit averaged weights.
    The batches before them bring the power iterations of the spectral norms to these weights.
    """
    assert isinstance(generator, Generator)
    norms = [each for each in generator.modules() if isinstance(each, nn.BatchNorm2d)]
    device = generator.embed.weight.device
    generator.train()
    for batch in range(-WARM_BATCHES, STANDING_BATCHES):
        if batch == 0:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # of all batches alike
        numbers = torch.arange(STANDING_SIZE) + max(0, batch) * STANDING_SIZE
        generator(
            latents(numbers, generator.latent_size, {}).to(device),
            (numbers % generator.num_classes).to(device),
        )
    return generator.eval()
