"""DP-SGD against a slow loop over single images, and its epsilon against another accountant."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from knowledge_recycling.config import validate
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet, to_unit
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.privacy import dp
from knowledge_recycling.privacy.dp import DPConfig, check_installed, grouped, train_private
from knowledge_recycling.randomness import numpy_rng

pytest.importorskip("opacus")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Opacus

MakeSet = Callable[..., ImageSet]


def config(**given: Any) -> DPConfig:
    usual = {"delta": 1e-3, "epochs": 2, "classifier": {"width": 8, "blocks": 1}}
    return validate(DPConfig, usual | given)


def test_a_step_without_noise_is_the_mean_of_clipped_gradients(
    make_set: MakeSet, context: Context
) -> None:
    members, given = make_set(12), config(learning_rate=0.5, max_norm=0.1)
    network = dp._new(members, given, context, "dp")
    expected = slow_step(copy.deepcopy(network), members, given, context.seed)
    trained = dp._train(network, members, given, 0.0, (0.5, 1), context, "dp")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def slow_step(network: nn.Module, members: ImageSet, given: DPConfig, seed: int) -> nn.Module:
    drawn = numpy_rng(seed, "dp", "batch", 0).random(len(members)) < 0.5
    parameters = list(network.parameters())
    total = [torch.zeros_like(each) for each in parameters]
    for row in np.flatnonzero(drawn):
        logits = network(to_unit(members.images[row : row + 1]).contiguous())
        loss = functional.cross_entropy(logits, torch.tensor([members.labels[row]]))
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.cat([each.flatten() for each in gradients]).norm()
        for each, gradient in zip(total, gradients, strict=True):
            each += gradient * min(1.0, given.max_norm / (float(norm) + 1e-6))
    with torch.no_grad():
        for each, summed in zip(parameters, total, strict=True):
            each -= given.learning_rate * summed / (0.5 * len(members))
    return network


def test_noise_is_as_loud_as_said_and_has_a_name(make_set: MakeSet, context: Context) -> None:
    members, given = make_set(12), config(learning_rate=1.0, max_norm=0.1)
    start = dp._new(members, given, context, "dp")
    plain, noisy, again = (
        torch.cat([
            each.flatten()
            for each in dp._train(
                copy.deepcopy(start), members, given, noise, (0.5, 1), context, "dp"
            ).parameters()
        ])
        for noise in (0.0, 3.0, 3.0)
    )  # fmt: skip
    assert torch.equal(noisy, again)
    deviation = float((noisy - plain).std())
    assert deviation == pytest.approx(3.0 * 0.1 / 6, rel=0.03)  # of 7,000 weights


def test_the_guarantee_holds_by_another_accountant(make_set: MakeSet, context: Context) -> None:
    from opacus.accountants import PRVAccountant

    private = train_private(make_set(24), config(epochs=2), 4.0, context, "dp")
    assert 3.8 < private.epsilon <= 4.0, "noise is no louder than needed"
    accountant = PRVAccountant()
    accountant.history = [(private.noise_multiplier, 0.5, 4)]
    assert 0.5 * private.epsilon < accountant.get_epsilon(private.delta) <= private.epsilon


def test_no_image_looks_at_another(make_set: MakeSet, context: Context) -> None:
    network = dp._new(make_set(12), config(), context, "dp").train()
    assert not any(isinstance(each, nn.BatchNorm2d) for each in network.modules())
    images = to_unit(make_set(12).images).contiguous()
    together, alone = network(images), torch.cat([network(each[None]) for each in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_groups_are_of_eight_channels_or_all() -> None:
    network = nn.Sequential(nn.BatchNorm2d(24), nn.Sequential(nn.BatchNorm2d(6)))
    grouped(network)
    norms = [each for each in network.modules() if isinstance(each, nn.GroupNorm)]
    assert [each.num_groups for each in norms] == [3, 1]


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opacus", None)
    with pytest.raises(RecipeError, match="Opacus") as caught:
        check_installed(config())
    assert "[dp]" in str(caught.value)
    check_installed(config(epsilons=[]))
