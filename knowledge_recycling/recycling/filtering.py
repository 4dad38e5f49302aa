"""The filter: synthetic images are kept where the teacher recognises the class they were made for.

After bounded retries the rest is filled unfiltered and counted (GaFi, arXiv 2305.10118).
Shapes: M images of one chunk, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling.config import Config

Sampler = Callable[[Tensor, Tensor], Tensor]
"""Labels [M] and seeds [M] to images [M,C,H,W] in [-1, 1]."""

RETRY_STRIDE = 2_654_435_761
"""Distance between the seeds of an image's successive tries. torch's generator on a processor sees
the lower 32 bits of a seed only: there multiples of this one (2^32 over the golden ratio) keep far
from each other, so that no other image's seeds are met."""


class FilterConfig(Config):
    """When a synthetic image is kept."""

    threshold: float = Field(0.0, ge=0, lt=1)
    """The teacher's probability of the intended class must exceed this and be its largest."""
    retries: NonNegativeInt = 3
    """How often a rejected image is sampled anew before it is taken as it is."""


@dataclass(frozen=True)
class Filtered:
    """Images that passed, and those taken unfiltered after all retries."""

    images: Tensor
    """[M,C,H,W] in [-1, 1]."""
    accepted: Tensor
    """[M], whether the teacher recognised the image."""


@torch.no_grad()
def recognised(teacher: nn.Module, images: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Returns which images [M] the teacher gives their label, with more than `threshold`."""
    probability, predicted = functional.softmax(teacher(images).float(), dim=1).max(dim=1)
    return (predicted == labels) & (probability > threshold)


def sample_filtered(
    sample: Sampler, labels: Tensor, seeds: Tensor, teacher: nn.Module, config: FilterConfig
) -> Filtered:
    """Samples one image for each label [M] and seed [M], again where the teacher rejects it."""
    images = sample(labels, seeds)
    accepted = recognised(teacher, images, labels, config.threshold)
    for attempt in range(1, config.retries + 1):
        rejected = (~accepted).nonzero().squeeze(1)
        if len(rejected) == 0:
            break
        retried = sample(labels[rejected], seeds[rejected.cpu()] + attempt * RETRY_STRIDE)
        images[rejected] = retried
        accepted[rejected] = recognised(teacher, retried, labels[rejected], config.threshold)
    return Filtered(images, accepted)
