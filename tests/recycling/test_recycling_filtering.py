"""The filter against a sampler that obeys only at a given try, so that every try is counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from knowledge_recycling.models.latents import seeded_noise
from knowledge_recycling.recycling.filtering import (
    RETRY_STRIDE,
    FilterConfig,
    recognised,
    sample_filtered,
)


class Stubborn:
    """Draws the right class only at a try given for each first seed; counts what it is asked."""

    def __init__(self, tries: list[int]) -> None:
        self.tries = tries
        self.asked: list[int] = []

    def __call__(self, labels: Tensor, seeds: Tensor) -> Tensor:
        self.asked.append(len(seeds))
        first, attempt = seeds % RETRY_STRIDE, seeds // RETRY_STRIDE
        needed = torch.tensor(self.tries)[first]
        shown = torch.where(attempt >= needed, labels, 1 - labels)
        images = torch.zeros(len(labels), 1, 2, 2)
        images[:, 0, 0, 0] = shown
        images[:, 0, 1, 1] = attempt.float()
        return images


class Teacher(nn.Module):
    def __init__(self, confidence: float = 0.8) -> None:
        super().__init__()
        self.logit = torch.logit(torch.tensor(confidence))

    def forward(self, images: Tensor) -> Tensor:
        shown = images[:, 0, 0, 0]
        return torch.stack([(1 - shown) * self.logit, shown * self.logit], dim=1)


LABELS, SEEDS = torch.tensor([0, 1, 0, 1, 1]), torch.arange(5)
TRIES = [0, 1, 2, 3, 9]


@pytest.mark.parametrize(
    ("retries", "accepted", "asked"),
    [
        (0, [1, 0, 0, 0, 0], [5]),
        (1, [1, 1, 0, 0, 0], [5, 4]),
        (2, [1, 1, 1, 0, 0], [5, 4, 3]),
        (5, [1, 1, 1, 1, 0], [5, 4, 3, 2, 1, 1]),
    ],
)
def test_only_the_rejected_are_tried_again_and_no_more_than_allowed(
    retries: int, accepted: list[int], asked: list[int]
) -> None:
    sampler = Stubborn(TRIES)
    config = FilterConfig(threshold=0.5, retries=retries)
    result = sample_filtered(sampler, LABELS, SEEDS, Teacher(), config)
    assert result.accepted.tolist() == [bool(each) for each in accepted]
    assert sampler.asked == asked
    shown = result.images[:, 0, 0, 0].long()
    assert torch.equal(shown == LABELS, result.accepted), "accepted: recognised by the teacher"
    last = [min(needed, retries) for needed in TRIES]
    assert result.images[:, 0, 1, 1].tolist() == last


def test_every_try_has_noise_of_its_own() -> None:
    noise = []

    def sample(labels: Tensor, seeds: Tensor) -> Tensor:
        noise.extend(seeded_noise(seeds, (8,)))
        return torch.zeros(len(labels), 1, 2, 2)  # class 0, whatever is asked

    config, size = FilterConfig(retries=40), 50
    sample_filtered(
        sample, torch.ones(size, dtype=torch.int64), torch.arange(size), Teacher(), config
    )
    assert len({tuple(each.tolist()) for each in noise}) == size * (1 + config.retries)


def test_nothing_is_tried_again_once_all_are_accepted() -> None:
    sampler = Stubborn([0] * 5)
    sample_filtered(sampler, LABELS, SEEDS, Teacher(), FilterConfig(retries=9))
    assert sampler.asked == [5]


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, True), (0.79, True), (0.81, False)])
def test_the_teacher_must_be_right_and_sure(threshold: float, kept: bool) -> None:
    images = torch.zeros(2, 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([0.0, 1.0])
    right = recognised(Teacher(0.8), images, torch.tensor([0, 1]), threshold)
    assert right.tolist() == [kept, kept]
    assert recognised(Teacher(0.8), images, torch.tensor([1, 0]), 0.0).tolist() == [False, False]
