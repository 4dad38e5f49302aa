"""BigGAN-deep against linear algebra and slow loops: norms, logits, losses, averaged statistics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from adversaries import IMAGES, LABELS, SHAPE, objective_of
from lightning_fabric import Fabric
from torch import Tensor, nn

from knowledge_recycling.config import Facts
from knowledge_recycling.models.generators import biggan
from knowledge_recycling.models.generators.biggan import (
    STANDING_BATCHES,
    STANDING_SIZE,
    Attention,
    Config,
    Discriminator,
    Generator,
    Objective,
    Plan,
)
from knowledge_recycling.models.latents import latents
from knowledge_recycling.randomness import rng

CONFIG = Config(
    width=8,
    depth=2,
    latent_size=4,
    embedding_size=4,
    discriminator_steps=1,
    learning_rate=2e-4,
    discriminator_learning_rate=1e-3,
    augment=(),
)


objective: Callable[..., Objective] = partial(objective_of, CONFIG)


def teach(learner: Objective, steps: range) -> list[dict[str, Tensor]]:
    return [learner.step(IMAGES, LABELS, rng(0, "t", step)) for step in steps]


def weights(module: nn.Module) -> list[Tensor]:
    return [each.detach().clone() for each in module.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("shape", "channels", "attention"),
    [
        ((1, 8, 8), [32, 32], 1),
        ((3, 28, 28), [32, 32, 32, 32], 2),
        ((3, 32, 32), [32, 32, 32, 32], 2),
        ((3, 64, 64), [32, 32, 32, 32, 16], 2),
        ((1, 128, 128), [32, 32, 32, 32, 16, 8], 2),
    ],
)
def test_the_plan_follows_the_size(shape: Any, channels: list[int], attention: int) -> None:
    plan = Plan(CONFIG, shape)
    assert plan.channels == channels
    assert plan.attention == attention


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 28, 28)])
def test_both_networks_fit_the_image(shape: tuple[int, int, int]) -> None:
    labels = torch.tensor([0, 2])
    images = Generator(CONFIG, shape, 3)(torch.randn(2, 4), labels)
    assert images.shape == (2, *shape)
    assert Discriminator(CONFIG, shape, 3)(images, labels).shape == (2,)


def test_the_published_network_has_its_size(make_facts: Callable[..., Facts]) -> None:
    config = Config().completed(make_facts(shape=(3, 32, 32), on_gpu=True))
    assert (config.width, config.depth, config.discriminator_steps) == (128, 2, 3)
    with torch.device("meta"):
        plan = Plan(config, (3, 32, 32))
        assert plan.channels == [512] * 4
    assert plan.pyramid.base == (4, 4)


@pytest.mark.parametrize(("num_train", "augmented"), [(500, True), (5000, True), (5001, False)])
def test_small_sets_are_augmented(
    make_facts: Callable[..., Facts], num_train: int, augmented: bool
) -> None:
    assert bool(Config().completed(make_facts(num_train=num_train)).augment) == augmented


def test_every_layer_of_the_discriminator_has_a_largest_gain_of_one() -> None:
    network = Discriminator(CONFIG, SHAPE, 3)
    for _ in range(50):  # power iterations
        network(IMAGES, LABELS)
    network.eval()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) > 10
    for layer in layers:
        largest = np.linalg.svd(layer.weight.detach().flatten(1).numpy(), compute_uv=False)[0]
        assert largest == pytest.approx(1, abs=0.02)


def test_a_label_adds_its_projection_to_the_logit() -> None:
    network = Discriminator(CONFIG, SHAPE, 3).eval()
    seen: list[Tensor] = []
    network.leave.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    logits = [network(IMAGES, torch.full((6,), k)) for k in range(3)]
    for k in range(3):
        expected = seen[0] @ (network.embed.weight[k] - network.embed.weight[0])
        torch.testing.assert_close(logits[k] - logits[0], expected)


def test_attention_equals_a_loop_over_positions() -> None:
    layer = Attention(16).eval()
    nn.init.constant_(layer.gain, 0.7)
    x = torch.randn(2, 16, 4, 6)
    with torch.no_grad():
        query, key, value = (part(x) for part in (layer.query, layer.key, layer.value))
        gathered = torch.zeros(2, 8, 4, 6)
        for n, i, j in np.ndindex(2, 4, 6):
            blocks = [(r, c) for r in range(2) for c in range(3)]
            at = lambda maps, r, c: maps[n, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].amax((1, 2))  # noqa: B023, E731
            scores = torch.stack([query[n, :, i, j] @ at(key, r, c) for r, c in blocks])
            shares = scores.softmax(dim=0)
            gathered[n, :, i, j] = sum(
                s * at(value, r, c) for s, (r, c) in zip(shares, blocks, strict=True)
            )
        torch.testing.assert_close(layer(x), x + 0.7 * layer.out(gathered), atol=1e-5, rtol=1e-4)


def test_the_losses_are_hinges(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = objective(fabric)
    real, fake = torch.tensor([0.5, 3.0, -1.0]), torch.tensor([-2.0, 0.25, -0.5])
    shift = learner.discriminator.leave.bias
    monkeypatch.setattr(learner, "logits", lambda *_: (real + 0 * shift, fake + 0 * shift))
    losses = learner.step(IMAGES, LABELS, rng(0, "t"))
    expected = (0.5 + 0 + 2) / 3 + (0 + 1.25 + 0.5) / 3
    assert losses["loss"].item() == pytest.approx(expected)
    assert losses["real"].item() == pytest.approx(real.mean().item())
    assert losses["fake"].item() == pytest.approx(fake.mean().item())


def test_each_network_learns_from_its_own_loss(fabric: Fabric) -> None:
    learner = objective(fabric, discriminator_steps=2)
    for step, moves in enumerate([True, False, True, False]):
        before = weights(learner.generator), weights(learner.discriminator)
        teach(learner, range(step, step + 1))
        assert same(before[0], weights(learner.generator)) is not moves
        assert not same(before[1], weights(learner.discriminator))
    before = weights(learner.discriminator)
    learner.generator_step(IMAGES, LABELS, rng(0, "g"))
    assert same(before, weights(learner.discriminator))
    assert all(each.requires_grad for each in learner.discriminator.parameters())


def test_a_generator_step_makes_its_images_more_likely(fabric: Fabric) -> None:
    learner = objective(fabric, learning_rate=1e-3)
    teach(learner, range(20))
    learner.discriminator.eval()  # no more power iterations

    def logit() -> float:
        images = learner.generator.draw(LABELS, rng(0, "fixed"))
        return learner.discriminator(images, LABELS).mean().item()

    before = logit()
    for _ in range(5):
        learner.generator_step(IMAGES, LABELS, rng(0, "fixed"))
    assert logit() > before


def test_standing_statistics_fit_the_averaged_weights(fabric: Fabric) -> None:
    learner = objective(fabric, learning_rate=0.01)
    teach(learner, range(12))
    stored = {name: each.clone() for name, each in learner.average.state_dict().items()}
    generator = learner.averaged()
    assert isinstance(generator, Generator)
    assert not generator.training
    first = generator.stages[0].norms[0].norm
    inputs = []
    for batch in range(STANDING_BATCHES):
        seeds = torch.arange(STANDING_SIZE) + batch * STANDING_SIZE
        condition = torch.cat([latents(seeds, 4, {}), generator.embed(seeds % 3)], dim=1)
        inputs.append(generator.enter(condition).view(STANDING_SIZE, 32, -1).detach())
    mean = torch.stack([each.mean(dim=(0, 2)) for each in inputs]).mean(dim=0)
    variance = torch.stack([each.var(dim=(0, 2)) for each in inputs]).mean(dim=0)
    torch.testing.assert_close(first.running_mean, mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(first.running_var, variance, atol=1e-3, rtol=1e-2)
    again = learner.averaged().state_dict()
    assert all(torch.equal(each, again[name]) for name, each in generator.state_dict().items())
    for name, each in learner.average.state_dict().items():
        assert torch.equal(each, stored[name]), "looking at the average must not change it"


def test_averaged_weights_are_those_of_the_average(fabric: Fabric) -> None:
    learner = objective(fabric)
    teach(learner, range(3))
    average = dict(learner.average.module.named_parameters())
    for name, each in learner.averaged().named_parameters():
        assert torch.equal(each, average[name])
    assert biggan.KNOBS["latent_std"].tuned
