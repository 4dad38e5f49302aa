"""R3GAN against algebra: pairing loss, known penalties, a start without residuals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from adversaries import IMAGES, LABELS, SHAPE, objective_of
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling.compute import ComputeConfig, make_fabric
from knowledge_recycling.config import Facts
from knowledge_recycling.models.generators.r3gan import (
    Block,
    Config,
    Discriminator,
    Generator,
    Objective,
    Resample,
    channels_of,
    pairing_loss,
)
from knowledge_recycling.models.layers import pyramid_of
from knowledge_recycling.randomness import rng

CONFIG = Config(
    width=8,
    depth=1,
    expansion=1.0,
    group_size=0,
    latent_size=4,
    embedding_size=4,
    learning_rate=1e-3,
    augment=(),
)


objective: Callable[..., Objective] = partial(objective_of, CONFIG)


class Linear(nn.Module):
    """A discriminator whose gradient is known: the logit is a[label] times the sum of w x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 64).view(SHAPE))
        self.slopes = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.slopes[labels] * (images * self.weight).sum(dim=(1, 2, 3))


def test_the_pairing_loss_is_the_logistic_loss_of_the_difference() -> None:
    real, fake = torch.tensor([0.3, -2.0, 5.0]), torch.tensor([0.3, 1.0, -1.0])
    slow = np.mean([math.log(1 + math.exp(b - a)) for a, b in zip(real, fake, strict=True)])
    assert pairing_loss(real, fake).item() == pytest.approx(slow, rel=1e-6)
    torch.testing.assert_close(pairing_loss(real + 7, fake + 7), pairing_loss(real, fake))
    assert pairing_loss(real, real).item() == pytest.approx(math.log(2))
    # softplus(x) - softplus(-x) = x: what one network loses by a shift, the other gains
    difference = pairing_loss(fake, real) - pairing_loss(real, fake)
    torch.testing.assert_close(difference, (real - fake).mean())


def penalties_of(learner: Objective, images: Tensor) -> Tensor:
    """Returns the penalties at real and fake images, [2], which still have their graph."""
    _, measures = learner.discriminator_loss(images, LABELS, rng(0, "t"))
    return torch.stack([measures["real_penalty"], measures["fake_penalty"]])


def test_the_penalties_are_the_squared_norms_of_the_gradients(fabric: Fabric) -> None:
    learner = objective(fabric)
    learner.discriminator = Linear()
    penalties = penalties_of(learner, IMAGES)
    norm = learner.discriminator.weight.square().sum()
    expected = norm * torch.tensor([1.0, 4.0, 9.0]).mean()
    torch.testing.assert_close(penalties, expected.expand(2))
    (slope,) = torch.autograd.grad(penalties.sum(), learner.discriminator.slopes)
    torch.testing.assert_close(slope, 2 * norm * 2 / 3 * torch.tensor([1.0, 2.0, 3.0]))


def test_the_penalties_are_in_fp32_whatever_the_precision(fabric: Fabric) -> None:
    bf16 = make_fabric(ComputeConfig(accelerator="cpu", precision="bf16-mixed"))
    at_real = [penalties_of(objective(each), IMAGES)[0] for each in (fabric, bf16)]
    assert torch.equal(at_real[0], at_real[1])
    assert at_real[1].dtype == torch.float32


def test_half_of_gamma_times_the_penalties_is_added(fabric: Fabric) -> None:
    learner = objective(fabric, penalty=3.0)
    total, measures = learner.discriminator_loss(IMAGES, LABELS, rng(0, "t"))
    penalties = measures["real_penalty"] + measures["fake_penalty"]
    torch.testing.assert_close(total, measures["loss"] + 1.5 * penalties)


def test_the_penalties_agree_with_finite_differences(fabric: Fabric) -> None:
    learner = objective(fabric, depth=2)
    network = learner.discriminator.double()
    step = 1e-7  # a longer step may cross a kink of a rectifier
    for parameter in network.parameters():  # the start is linear; a trained one is not
        nn.init.normal_(parameter, std=0.3)
    images = IMAGES.double()
    squares = torch.zeros(6, dtype=torch.float64)
    with torch.no_grad():
        for i in range(64):
            change = torch.zeros(64, dtype=torch.float64)
            change[i] = step
            up, down = (network(images + s * change.view(SHAPE), LABELS) for s in (1, -1))
            squares += ((up - down) / (2 * step)).square()
    at_real, _ = penalties_of(learner, images)
    assert at_real.item() == pytest.approx(squares.mean().item(), rel=1e-5)


def test_the_networks_start_without_residuals() -> None:
    x = torch.randn(2, 16, 4, 4)
    block = Block(CONFIG, 16, num_blocks=16)
    assert torch.equal(block(x), x)
    with torch.no_grad():
        inner = functional.leaky_relu(block.squeeze(torch.randn(64, 16, 8, 8)), 0.2)
    # He's gain keeps the mean square through the rectifier; L^(-1/4) of 16 blocks halves it
    assert inner.square().mean().sqrt().item() == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize(("group_size", "groups"), [(0, 1), (4, 4), (16, 1)])
def test_the_middle_convolution_has_groups_of_the_size(group_size: int, groups: int) -> None:
    config = CONFIG.model_copy(update={"group_size": group_size})
    assert Block(config, 16, 1).middle.groups == groups


def test_resampling_is_bilinear_and_commutes_with_the_channels() -> None:
    x = torch.randn(2, 8, 6, 4)
    for factor in (2.0, 0.5):
        expected = functional.interpolate(x, scale_factor=factor, mode="bilinear")
        torch.testing.assert_close(Resample(8, 8, factor=factor)(x), expected)
        layer = Resample(8, 16, factor=factor)
        assert layer.change is not None
        torch.testing.assert_close(layer(x), layer.change(expected), atol=1e-5, rtol=1e-5)


def test_channels_double_towards_coarse_maps_up_to_four_times() -> None:
    assert channels_of(CONFIG, pyramid_of((3, 28, 28))) == [32, 32, 16, 8]
    assert channels_of(CONFIG, pyramid_of((3, 64, 64))) == [32, 32, 32, 16, 8]
    assert channels_of(CONFIG, pyramid_of(SHAPE)) == [16, 8]


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 28, 28)])
def test_both_networks_fit_the_image(shape: tuple[int, int, int]) -> None:
    labels = torch.tensor([0, 2])
    images = Generator(CONFIG, shape, 3)(torch.randn(2, 4), labels)
    assert images.shape == (2, *shape)
    assert Discriminator(CONFIG, shape, 3)(images, labels).shape == (2,)


def test_the_start_keeps_the_scale_of_images() -> None:
    images = Generator(CONFIG, (1, 64, 64), 3)(torch.randn(256, 4), torch.arange(256) % 3)
    assert 0.05 < images.std().item() < 5


def test_grouped_blocks_are_for_gpus(make_facts: Callable[..., Facts]) -> None:
    cpu, gpu = (Config().completed(make_facts(on_gpu=on_gpu)) for on_gpu in (False, True))
    assert (cpu.group_size, gpu.group_size) == (0, 16)
    assert gpu.width * 4 == 768


def test_each_network_learns_from_its_own_loss(fabric: Fabric) -> None:
    learner = objective(fabric)
    networks = (learner.generator, learner.discriminator)
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    learner.step(IMAGES, LABELS, rng(0, "t"))
    for network, old in zip(networks, before, strict=True):
        assert any(not torch.equal(p, q) for p, q in zip(network.parameters(), old, strict=True))
    for network in networks:
        network.zero_grad()
    learner.generator_loss(IMAGES, LABELS, rng(0, "t"))
    learner.discriminator_loss(IMAGES, LABELS, rng(0, "t"))[0].backward()
    assert all(p.grad is None for p in learner.generator.parameters())
