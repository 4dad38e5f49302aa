"""What generative adversarial networks share: sampling from latents, and turns of two networks.

Shapes: N images, C channels, H rows, W columns, Z numbers of a latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from knowledge_recycling import ranks
from knowledge_recycling.compute import descend
from knowledge_recycling.config import Facts
from knowledge_recycling.models.averaging import AveragingObjective
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.models.latents import latents

FEW_IMAGES = 5000
"""Up to here differentiable augmentation is on by default: a tenth of CIFAR-10, where Zhao et al.
(2020, arXiv 2006.10738, section 4.2) find that it matters most; on all of it, it gains little."""


class LatentGenerator(nn.Module):
    """Base of generators that map a latent and a label to an image in one pass."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, latent_size: int) -> None:
        super().__init__()
        self.shape = shape
        self.num_classes = num_classes
        self.latent_size = latent_size

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Returns images [N,C,H,W] of latents [N,Z] and labels [N]."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: Tensor, knobs: Knobs) -> Tensor:
        """Returns images [N,C,H,W] in [-1, 1] of the classes `labels` [N].

        Image i depends on labels[i], seeds[i] (int64 [N]) and the knobs alone, not on the batch.
        """
        latent = latents(seeds, self.latent_size, knobs).to(labels.device)
        images: Tensor = self(latent, labels)
        return images.float().clamp(-1.0, 1.0)

    def draw(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Returns images [N,C,H,W] of the classes `labels` [N] to train with.

        Of several processes that train together, each makes its rows; the others' are zero.
        """
        latent = torch.randn(len(labels), self.latent_size, generator=rng).to(labels.device)
        images: Tensor = self(*ranks.shard(latent, labels))
        return ranks.spread(images)


def derived_augmentations(facts: Facts) -> dict[str, Any]:
    """Returns the augmentations of all that a discriminator sees: some for small sets, else none.

    Translation, cut-out, contrast and brightness (Zhao et al. 2020), in this package's strengths.
    """
    small = facts.num_train <= FEW_IMAGES
    return {"augment": ("shift", "cutout", "intensity") if small else ()}


class AdversarialObjective(AveragingObjective):
    """Base of objectives: two networks that take turns, and the weight average of the generator."""

    STATEFUL = ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer")

    def __init__(
        self,
        generator: LatentGenerator,
        discriminator: nn.Module,
        fabric: Fabric,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
        discriminator_steps: int = 1,
    ) -> None:
        super().__init__(generator)
        self.generator = generator
        self.discriminator = discriminator
        self.fabric = fabric
        self.generator_optimizer, self.discriminator_optimizer = optimizers
        self.discriminator_steps = discriminator_steps

    def step(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """Takes a step of the discriminator on images [N,C,H,W] in [-1, 1] and labels [N].

        The first of every `discriminator_steps` steps is followed by one of the generator. Returns
        what the discriminator's step measured, its `loss` among it.
        """
        loss, measures = self.discriminator_loss(images, labels, rng)
        descend(loss, self.discriminator_optimizer)
        if self.steps % self.discriminator_steps == 0:
            self.generator_step(images, labels, rng)
        self.steps += 1
        return {name: measure.detach() for name, measure in measures.items()}

    def generator_step(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> None:
        """Takes a step of the generator, images and labels as for `step`, and averages it."""
        with fixed(self.discriminator):
            descend(self.generator_loss(images, labels, rng), self.generator_optimizer)
        self.average.update_parameters(self.generator)

    def discriminator_loss(
        self, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what the discriminator minimises, and what to report of it."""
        raise NotImplementedError

    def generator_loss(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """Returns what the generator minimises."""
        raise NotImplementedError


@contextmanager
def fixed(module: nn.Module) -> Iterator[None]:
    """Spares the gradients of the weights of `module`; gradients still flow through it."""
    module.requires_grad_(requires_grad=False)
    yield
    module.requires_grad_(requires_grad=True)
