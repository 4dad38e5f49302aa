"""Class-conditional flow matching with a compact U-Net.

The generator learns the velocity of the straight path from an image to noise (Lipman et al. 2023,
arXiv 2210.02747) and walks it back with a few midpoint steps; classifier-free guidance (Ho &
Salimans 2022, arXiv 2207.12598) and the standard deviation of the latent are knobs.

Shapes: N images, C channels, H rows, W columns; t in [0, 1], 0 image, 1 noise.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling import ranks
from knowledge_recycling.compute import descend
from knowledge_recycling.config import DERIVED, Facts, PluginConfig
from knowledge_recycling.models.averaging import power_average
from knowledge_recycling.models.knobs import Knob, Knobs
from knowledge_recycling.models.latents import seeded_noise
from knowledge_recycling.models.unet import UNet

KNOBS = {
    "latent_std": Knob(1.0, (0.9, 1.0, 1.1, 1.2)),
    "guidance": Knob(1.0, (1.0, 1.5, 2.0)),
    "steps": Knob(4, (2, 4, 6), tuned=False),
}

IMAGE_STD = 0.5
"""Of pixels in [-1, 1], as Karras et al. 2022 (arXiv 2206.00364) assume for all sets of images."""

LOSS_TIMES = 8
"""Times at which `Generator.losses` looks."""


class Config(PluginConfig):
    """The flow generator and its training."""

    kind: Literal["flow"] = "flow"
    width: PositiveInt = Field(64, multiple_of=8)
    """Channels at the finest level of the U-Net, a multiple of 8; the level below has twice it."""
    depth: PositiveInt = 1
    """Residual blocks per level on the way down, and again on the way up."""
    patch: PositiveInt = DERIVED
    """Pixels per side of the patch that becomes one position; unset: 1 up to 16 px, 2 up to 32."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of Adam's learning rate, reached after `warmup_steps`."""
    warmup_steps: PositiveInt = 100
    """Steps over which the learning rate rises linearly."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of labels hidden in training, so that guidance has an unconditional velocity."""
    uniform_times: float = Field(0.25, ge=0, le=1)
    """Share of the times of training that are uniform; the others hardly reach pure noise, from
    where sampling takes its longest step."""

    def derived(self, facts: Facts) -> dict[str, Any]:
        """Derives the patch so that the finest level has 8 to 16 positions per side."""
        side = max(facts.shape[1:])
        return {"patch": max(1, 2 ** math.ceil(math.log2(side / 16)))}


class Generator(nn.Module):
    """Velocity network v(x_t, t, label) and its sampler."""

    def __init__(self, config: Config, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.shape = shape
        self.num_classes = num_classes
        self.network = UNet(
            shape[0],
            num_classes + 1,  # the last label means "hidden"
            width=config.width,
            depth=config.depth,
            patch=config.patch,
        )

    def velocity(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Returns the velocity noise minus image, [N,C,H,W], at `x` [N,C,H,W] and `t` [N].

        The network sees `x` at unit variance and adds, at unit variance too, what the best linear
        guess for white images leaves open: the preconditioning of Karras et al. 2022, section 5.
        """
        t_map = t[:, None, None, None]
        image_variance = IMAGE_STD**2
        variance = (1 - t_map) ** 2 * image_variance + t_map**2  # of x
        guess = (t_map - (1 - t_map) * image_variance) / variance * x
        to_unit = variance.rsqrt()
        left_open: Tensor = self.network(x * to_unit, t, labels).float()
        return guess + IMAGE_STD * to_unit * left_open

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Tensor, knobs: Knobs) -> Tensor:
        """Returns images [N,C,H,W] in [-1, 1] of the classes `labels` [N].

        Image i depends on labels[i], seeds[i] (int64 [N]) and the knobs alone, not on the batch.
        """
        setting = {name: knob.default for name, knob in KNOBS.items()} | dict(knobs)
        x = seeded_noise(seeds, self.shape).to(labels.device) * setting["latent_std"]
        x = x.contiguous(memory_format=torch.channels_last)
        times = step_times(int(setting["steps"]))
        for t, t_next in itertools.pairwise(times):
            x = self._midpoint_step(x, (t, t_next), labels, setting["guidance"])
        return x.clamp_(-1.0, 1.0)

    @torch.no_grad()
    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the denoising errors [N] of images [N,C,H,W] in [-1, 1] of the classes `labels`.

        The flow matching loss, at quantiles of the logit-normal times, each with one noise for all
        images, so that images and generators compare: what an attack on a generator asks.
        """
        quantiles = (torch.arange(LOSS_TIMES) + 0.5) / LOSS_TIMES
        times = torch.special.ndtri(quantiles).sigmoid().tolist()
        noises = seeded_noise(torch.arange(LOSS_TIMES), self.shape).to(images.device)
        errors = torch.zeros(len(images), device=images.device)
        for t, noise in zip(times, noises, strict=True):
            at = torch.full((len(images),), t, device=images.device)
            velocity = self.velocity(torch.lerp(images, noise, t), at, labels)
            errors += (velocity - (noise - images)).square().mean(dim=(1, 2, 3))
        return errors / LOSS_TIMES

    def _midpoint_step(
        self, x: Tensor, interval: tuple[float, float], labels: Tensor, guidance: float
    ) -> Tensor:
        t, t_next = interval
        length = t_next - t
        slope = self._guided(x, t, labels, guidance)
        if t_next != 0.0:  # the plain last step lands on the mean image, so it leaves no noise
            half_way = x + length * 0.5 * slope
            slope = self._guided(half_way, (t + t_next) / 2, labels, guidance)
        return x + length * slope

    def _guided(self, x: Tensor, t: float, labels: Tensor, guidance: float) -> Tensor:
        times = torch.full((len(x),), t, device=x.device)
        velocity = self.velocity(x, times, labels)
        if guidance == 1.0:
            return velocity
        hidden = torch.full_like(labels, self.num_classes)
        unconditional = self.velocity(x, times, hidden)
        return unconditional + guidance * (velocity - unconditional)


def step_times(num_steps: int) -> list[float]:
    """Returns the times from 1 (noise) to 0 (image), steps shrinking towards the image.

    t = 1 - sin(pi/2 * i/n): with 3 to 6 steps a third of the error of equal steps.
    """
    return [1 - math.sin(math.pi / 2 * i / num_steps) for i in range(num_steps)] + [0.0]


class Objective:
    """Flow matching loss, optimiser and weight average of a generator."""

    def __init__(self, generator: Generator, config: Config, fabric: Fabric) -> None:
        self.generator = generator
        self.average = power_average(generator)
        self.fabric = fabric
        self.config = config
        self.optimizer = torch.optim.Adam(
            generator.parameters(), lr=config.learning_rate, betas=(0.9, 0.99)
        )
        self.steps = 0

    def step(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Takes one step on images [N,C,H,W] in [-1, 1] and labels [N]; returns its loss."""
        with self.fabric.autocast():
            loss = self.loss(images, labels, rng)
        self.steps += 1
        warm = min(1.0, self.steps / self.config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warm
        descend(loss, self.optimizer, max_norm=1.0)
        self.average.update_parameters(self.generator)
        return {"loss": loss.detach()}

    def loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Returns the mean squared error of the velocity (conditional flow matching loss).

        Most times follow a logit-normal law (Esser et al. 2024, arXiv 2403.03206, section 3.1).
        """
        device = images.device
        noise = torch.randn(images.shape, generator=rng).to(device)
        t = self._times(len(images), rng).to(device)
        hide = (torch.rand(len(images), generator=rng) < self.config.label_dropout).to(device)
        images, labels, noise, t, hide = ranks.shard(images, labels, noise, t, hide)
        x_t = torch.lerp(images, noise, t[:, None, None, None])
        seen = torch.where(hide, self.generator.num_classes, labels)
        velocity = self.generator.velocity(x_t, t, seen)
        return functional.mse_loss(velocity, noise - images)

    def _times(self, number: int, rng: torch.Generator) -> Tensor:
        logit_normal = torch.randn(number, generator=rng).sigmoid()
        uniform = torch.rand(number, generator=rng)
        is_uniform = torch.rand(number, generator=rng) < self.config.uniform_times
        return torch.where(is_uniform, uniform, logit_normal)

    def averaged(self) -> nn.Module:
        """Returns the generator with averaged weights: what a candidate saves."""
        return self.average.module

    def state_dict(self) -> dict[str, Any]:
        """Returns all that resuming needs."""
        return {
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
