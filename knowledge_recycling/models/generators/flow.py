"""Class-conditional flow matching with a compact U-Net.

The generator learns the velocity of the straight path from an image to noise (Lipman et al. 2023,
arXiv 2210.02747) and walks it back with a few midpoint steps; classifier-free guidance (Ho &
Salimans 2022, arXiv 2207.12598) and the standard deviation of the latent are knobs.

Shapes: N images, C channels, H rows, W columns; t in [0, 1], 0 image, 1 noise.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling import ranks
from knowledge_recycling.compute import descend
from knowledge_recycling.config import DERIVED, Facts, PluginConfig
from knowledge_recycling.models.averaging import AveragingObjective
from knowledge_recycling.models.knobs import Knob, Knobs
from knowledge_recycling.models.latents import seeded_noise
from knowledge_recycling.models.unet import UNet

# `distilled`: evaluations that the steps have been distilled to; 0: they have not.
KNOBS = {
    "latent_std": Knob(1.0, (0.9, 1.0, 1.1, 1.2)),
    "guidance": Knob(1.0, (1.0, 1.5, 2.0)),
    "steps": Knob(4, (2, 4, 6), tuned=False),
    "distilled": Knob(0, (0, 2), tuned=False),
}

IMAGE_STD = 0.5
"""Of pixels in [-1, 1], as Karras et al. 2022 (arXiv 2206.00364) assume for all sets of images."""

LOSS_TIMES = 8
"""Times at which `Generator.losses` looks."""

ACCELERATION_RATE = 1e-3
"""Peak of Adam's learning rate while a sampler is distilled: half that of training."""


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
        noise = seeded_noise(seeds, self.shape).to(labels.device)
        *_, images = self.path(noise, labels, knobs)
        return images.clamp_(-1.0, 1.0)

    @torch.no_grad()
    def path(self, noise: Tensor, labels: Tensor, knobs: Knobs) -> Iterator[Tensor]:
        """Yields x [N,C,H,W] at each of the times of the steps: `noise`, scaled, first."""
        setting = complete(knobs)
        times = step_times(int(setting["steps"]))
        if setting["distilled"]:
            times = stops(times, int(setting["distilled"]))
        x = (noise * setting["latent_std"]).contiguous(memory_format=torch.channels_last)
        yield x
        for interval in itertools.pairwise(times):
            x = self._step(x, interval, labels, setting)
            yield x

    def evaluations(self, knobs: Knobs) -> int:
        """Returns how often the network is evaluated to draw an image."""
        setting = complete(knobs)
        slopes = int(setting["distilled"] or 2 * setting["steps"] - 1)
        return slopes if setting["guidance"] == 1.0 else 2 * slopes

    def accelerated(
        self, knobs: Knobs, evaluations: int, num_steps: int, fabric: Fabric
    ) -> Acceleration:
        """Returns the objective that distils sampling with `knobs` into so few evaluations."""
        return Acceleration(self, knobs, evaluations, num_steps, fabric)

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

    def _step(
        self, x: Tensor, interval: tuple[float, float], labels: Tensor, setting: Knobs
    ) -> Tensor:
        t, t_next = interval
        length = t_next - t
        slope = self._guided(x, t, labels, setting["guidance"])
        # the plain last step lands on the mean image, so it leaves no noise
        if not setting["distilled"] and t_next != 0.0:
            half_way = x + length * 0.5 * slope
            slope = self._guided(half_way, (t + t_next) / 2, labels, setting["guidance"])
        return x + length * slope

    def _guided(self, x: Tensor, t: float, labels: Tensor, guidance: float) -> Tensor:
        times = torch.full((len(x),), t, device=x.device)
        velocity = self.velocity(x, times, labels)
        if guidance == 1.0:
            return velocity
        hidden = torch.full_like(labels, self.num_classes)
        unconditional = self.velocity(x, times, hidden)
        return unconditional + guidance * (velocity - unconditional)


def complete(knobs: Knobs) -> dict[str, float]:
    """Returns a value for each of `KNOBS`: that of `knobs`, or its default."""
    return {name: knob.default for name, knob in KNOBS.items()} | dict(knobs)


def step_times(num_steps: int) -> list[float]:
    """Returns the times from 1 (noise) to 0 (image), steps shrinking towards the image.

    t = 1 - sin(pi/2 * i/n): with 3 to 6 steps a third of the error of equal steps.
    """
    return [1 - math.sin(math.pi / 2 * i / num_steps) for i in range(num_steps)] + [0.0]


def stops(times: Sequence[float], count: int) -> list[float]:
    """Returns the ends of `count` intervals of `times` whose longest is as short as can be.

    >>> stops([1.0, 0.6, 0.3, 0.1, 0.0], 3)
    [1.0, 0.6, 0.3, 0.0]
    """
    first, *between, last = times
    choices = itertools.combinations(between, count - 1)
    paths = [[first, *chosen, last] for chosen in choices]
    return min(paths, key=lambda path: max(a - b for a, b in itertools.pairwise(path)))


class Learner(AveragingObjective):
    """A generator that learns, its optimiser and its weight average."""

    STATEFUL = ("generator", "optimizer")

    def __init__(self, generator: Generator, learning_rate: float, fabric: Fabric) -> None:
        super().__init__(generator)
        self.generator = generator
        self.optimizer = torch.optim.Adam(
            generator.parameters(), lr=learning_rate, betas=(0.9, 0.99)
        )
        self.fabric = fabric

    def descend(self, loss: Tensor, learning_rate: float) -> dict[str, Tensor]:
        """Takes one step down the gradient of `loss`; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        descend(loss, self.optimizer, max_norm=1.0)
        self.average.update_parameters(self.generator)
        return {"loss": loss.detach()}


class Objective(Learner):
    """Flow matching: how a generator is trained."""

    def __init__(self, generator: Generator, config: Config, fabric: Fabric) -> None:
        super().__init__(generator, config.learning_rate, fabric)
        self.config = config

    def step(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Takes one step on images [N,C,H,W] in [-1, 1] and labels [N]; returns its loss."""
        with self.fabric.autocast():
            loss = self.loss(images, labels, rng)
        self.steps += 1
        warm = min(1.0, self.steps / self.config.warmup_steps)
        return self.descend(loss, self.config.learning_rate * warm)

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


class Acceleration(Learner):
    """Distils the sampler of a trained generator into longer steps, each of one evaluation.

    One round of progressive distillation (Salimans & Ho 2022, arXiv 2202.00512): from where a step
    begins, its velocity is to lead where the trained generator's several steps arrive. It learns
    from noise and the trained generator alone, so it can tell of members no more than that does.
    """

    def __init__(
        self, trained: Generator, knobs: Knobs, evaluations: int, num_steps: int, fabric: Fabric
    ) -> None:
        super().__init__(copy.deepcopy(trained).requires_grad_(), ACCELERATION_RATE, fabric)
        steps = max(int(complete(knobs)["steps"]), evaluations)
        self.times = step_times(steps)
        self.stops = stops(self.times, evaluations)
        self.knobs_before: Knobs = {**knobs, "steps": steps}
        self.knobs: Knobs = {**knobs, "steps": steps, "distilled": evaluations, "guidance": 1.0}
        """With which the distilled generator is to be sampled."""
        self.trained = trained
        self.num_steps = num_steps

    def step(self, noise: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Takes one step on noise [N,C,H,W] and labels [N]; returns its loss."""
        del rng
        noise, labels = ranks.shard(noise, labels)
        with self.fabric.autocast():
            loss = self.loss(noise, labels)
        self.steps += 1
        share = self.steps / self.num_steps
        return self.descend(loss, ACCELERATION_RATE * min(share / 0.05, 1 - share))

    def loss(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean squared error of the velocities of all steps from `noise`."""
        path = self.trained.path(noise, labels, self.knobs_before)
        at_stop = [t in self.stops for t in self.times]
        states = torch.stack(list(itertools.compress(path, at_stop)))  # [S+1,N,C,H,W]
        times = torch.tensor(self.stops, device=noise.device)
        speed = states.diff(dim=0) / times.diff()[:, None, None, None, None]
        begin = states[:-1].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        at = times[:-1].repeat_interleave(len(labels))
        velocity = self.generator.velocity(begin, at, labels.repeat(len(states) - 1))
        return functional.mse_loss(velocity, speed.flatten(0, 1))
