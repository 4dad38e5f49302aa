"""Classifiers trained at once are those that each would be alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch.nn import functional

from knowledge_recycling.errors import DataError
from knowledge_recycling.models.build import build_classifier
from knowledge_recycling.models.classifiers.resnet import Config
from knowledge_recycling.privacy.many import (
    ManyTraining,
    Pool,
    Stack,
    epoch_rows,
    half_memberships,
    logits_of_many,
    train_many,
)


def networks(fabric: Fabric, count: int = 4) -> list[torch.nn.Module]:
    config, shape = Config(width=8, blocks=1), (1, 8, 8)
    return [
        build_classifier(config, shape, 2, fabric=fabric, seed=0, name=f"shadow {s}")
        for s in range(count)
    ]


@pytest.fixture
def pool() -> Pool:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(-1, 1, (24, 1, 8, 8)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 2, 24))
    return Pool(images, labels, half_memberships(4, 24, rng))


def alone(network: torch.nn.Module, pool: Pool, s: int, config: ManyTraining) -> torch.nn.Module:
    """Trains one shadow by itself, the usual way."""
    network.train()
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, momentum=config.momentum, nesterov=True
    )
    batches = [
        rows[s]
        for epoch in range(config.epochs)
        for rows in epoch_rows(pool.members, epoch, config.batch_size, 7)
    ]
    for step, rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / len(batches))
        optimizer.zero_grad()
        functional.cross_entropy(network(pool.images[rows]), pool.labels[rows]).backward()
        optimizer.step()
    return network.eval()


def test_training_at_once_equals_training_one_by_one(fabric: Fabric, pool: Pool) -> None:
    config = ManyTraining(epochs=2, batch_size=4, learning_rate=0.02)
    shadows = networks(fabric)
    before = [copy.deepcopy(each.state_dict()) for each in shadows]
    stack = train_many(shadows, pool, config, seed=7)
    for each, state in zip(shadows, before, strict=True):
        assert all(torch.equal(each.state_dict()[name], state[name]) for name in state)
    found = logits_of_many(stack, [pool.images, pool.images.flip(3)], batch_size=10)
    assert found.shape == (4, 2, 24, 2)
    for s, network in enumerate(networks(fabric)):
        single = alone(network, pool, s, config)
        with torch.no_grad():
            expected = torch.stack([single(pool.images), single(pool.images.flip(3))]).numpy()
        np.testing.assert_allclose(found[s], expected, atol=2e-4, rtol=1e-3)
        for name, buffer in single.named_buffers():
            torch.testing.assert_close(stack.buffers[name][s], buffer, atol=1e-4, rtol=1e-3)


def test_answers_do_not_touch_the_state(fabric: Fabric, pool: Pool) -> None:
    stack = Stack(networks(fabric))
    before = {name: value.clone() for name, value in stack.buffers.items()}
    first = logits_of_many(stack, [pool.images])
    np.testing.assert_allclose(logits_of_many(stack, [pool.images], 5), first, atol=1e-5)
    assert all(torch.equal(stack.buffers[name], before[name]) for name in before)


def test_batches_hold_each_member_once_per_epoch_and_nothing_else(pool: Pool) -> None:
    batches = epoch_rows(pool.members, 0, 5, 1)
    assert batches.shape == (2, 4, 5)  # 2 of the 12 members are left for another epoch
    for own, seen in zip(
        pool.members, np.concatenate(epoch_rows(pool.members, 0, 4, 1), axis=1), strict=True
    ):
        np.testing.assert_array_equal(np.sort(seen), np.flatnonzero(own))
    np.testing.assert_array_equal(batches, epoch_rows(pool.members, 0, 5, 1))
    assert not np.array_equal(batches, epoch_rows(pool.members, 1, 5, 1))


@pytest.mark.parametrize(("shadows", "images"), [(4, 24), (8, 7), (16, 1001)])
def test_each_shadow_has_half_and_each_image_two_on_either_side(shadows: int, images: int) -> None:
    members = half_memberships(shadows, images, np.random.default_rng(0))
    assert set(members.sum(axis=1)) == {images // 2}
    counts = members.sum(axis=0)
    assert counts.min() >= 2
    assert counts.max() <= shadows - 2


def test_other_shadows_do_not_tell_the_membership_of_one() -> None:
    members = half_memberships(16, 20_000, np.random.default_rng(0))
    others = members[1:].sum(axis=0)
    correlation = np.corrcoef(members[0], others)[0, 1]
    assert abs(correlation) < 0.04, "-0.26 if every image were IN exactly half"


def test_too_few_shadows_for_halves_are_an_error() -> None:
    with pytest.raises(DataError, match="two shadows"):
        half_memberships(4, 9, np.random.default_rng(0))


def test_unequal_shadows_are_an_error(pool: Pool) -> None:
    members = pool.members.copy()
    members[0, :] = True
    with pytest.raises(DataError, match="trained at once"):
        epoch_rows(members, 0, 4, 0)
    with pytest.raises(DataError, match="trained at once"):
        epoch_rows(pool.members, 0, 13, 0)
