"""Latents of single images from their seeds, and the knobs that shape them.

Shapes: N images, Z numbers of a latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from knowledge_recycling.models.knobs import Knob, Knobs

LATENT_KNOBS = {
    "latent_std": Knob(1.0, (0.9, 1.0, 1.1, 1.25, 1.5, 2.0)),
    "truncation": Knob(4.0, (1.0, 1.5, 2.0, 4.0), tuned=False),
}
"""Of generators that map a latent to an image in one pass."""


def seeded_noise(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns standard normal noise [N, *shape], each image from its own seed (int64 [N])."""
    generator = torch.Generator()
    draws = (torch.randn(shape, generator=generator.manual_seed(s)) for s in seeds.tolist())
    return torch.stack(list(draws))


def latents(seeds: Tensor, size: int, knobs: Knobs) -> Tensor:
    """Returns the latents [N, size] of images with `seeds` (int64 [N]), shaped by `LATENT_KNOBS`.

    The truncation trick (Brock et al. 2019, arXiv 1809.11096, section 3.1) redraws numbers beyond a
    threshold; mapping the quantiles of the noise gives the same law without redrawing, so that
    the latent changes smoothly with the knob. Its default, 4, moves one number in 500 by more
    than .01. The standard deviation is applied after it.
    """
    setting = {name: knob.default for name, knob in LATENT_KNOBS.items()} | dict(knobs)
    noise = seeded_noise(seeds, (size,)).double()
    below = torch.special.ndtr(torch.tensor(-setting["truncation"], dtype=torch.float64))
    quantile = below + (1 - 2 * below) * torch.special.ndtr(noise)
    truncated: Tensor = torch.special.ndtri(quantile) * setting["latent_std"]
    return truncated.float()
