"""The loop: stopped and resumed equals straight bit for bit, on the objectives that really run.

Losses are checked against means taken by hand, snapshots and patience by counting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from knowledge_recycling import interruption
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.interruption import Interrupted
from knowledge_recycling.models.build import build_classifier, build_generator
from knowledge_recycling.models.classifiers import resnet
from knowledge_recycling.models.generators import flow
from knowledge_recycling.rundir import SCRATCH
from knowledge_recycling.training.batches import Shuffled
from knowledge_recycling.training.classifier import (
    ClassifierObjective,
    ClassifierTraining,
    hard_loss,
)
from knowledge_recycling.training.loop import Objective, Plan, Record, train

MakeObjective = Callable[[Fabric], Objective]
SHAPE = (1, 8, 8)


def flow_objective(fabric: Fabric) -> Objective:
    config = flow.Config(width=8, patch=1, warmup_steps=5)
    generator = build_generator(config, SHAPE, 2, fabric=fabric, seed=0, name="g")
    return flow.Objective(generator, config, fabric)


def classifier_objective(fabric: Fabric) -> Objective:
    config = ClassifierTraining(batch_size=8, augment=("shift", "cutout", "hflip"))
    network = resnet.Config(width=8, blocks=1)
    classifier = build_classifier(network, SHAPE, 2, fabric=fabric, seed=0, name="c")
    return ClassifierObjective(classifier, config, hard_loss(), num_steps=STEPS, fabric=fabric)


STEPS = 9
BATCH = 8


def plan(**changes: Any) -> Plan:
    usual: dict[str, Any] = {
        "seed": 0,
        "name": "test",
        "images_seen": STEPS * BATCH,
        "batch_size": BATCH,
        "snapshots": [1 / 3, 2 / 3, 1.0],
    }
    return Plan(**(usual | changes))


def no_measures(model: nn.Module, images_seen: int, earlier: Sequence[Record]) -> Record:
    return {}


def stop_at(monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    """Requests the stop when the loop asks for the time number `asked`, counted from 0."""
    answers = iter([False] * asked + [True])
    monkeypatch.setattr(interruption, "requested", lambda: next(answers, False))


def without_rates(records: Sequence[Record]) -> list[Record]:
    return [{k: v for k, v in each.items() if k != "images_per_second"} for each in records]


def assert_equal_states(left: Any, right: Any) -> None:
    if isinstance(left, Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, Mapping):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal_states(left[key], right[key])
    elif isinstance(left, list | tuple):
        for one, other in zip(left, right, strict=True):
            assert_equal_states(one, other)
    else:
        assert left == right


@pytest.mark.parametrize("make", [flow_objective, classifier_objective])
@pytest.mark.parametrize("stops", [(0,), (1,), (3,), (4,), (8,), (2, 3, 2)])
def test_stopped_and_resumed_equals_straight_bit_for_bit(
    make: MakeObjective,
    stops: tuple[int, ...],
    make_set: Callable[..., ImageSet],
    fabric: Fabric,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = Shuffled(make_set(20), BATCH, seed=0, name="test")

    def go(folder: str) -> tuple[Objective, list[Record]]:
        objective = make(fabric)
        folder_path = tmp_path / folder
        return objective, train(
            objective, batches, plan(), no_measures, folder=folder_path, advance=lambda _: None
        )

    straight, records = go("straight")
    for steps in stops:
        with monkeypatch.context() as patch:
            stop_at(patch, steps)
            with pytest.raises(Interrupted):
                go("resumed")
    resumed, resumed_records = go("resumed")
    assert_equal_states(straight.state_dict(), resumed.state_dict())
    assert without_rates(records) == without_rates(resumed_records)


class Counting:
    """An objective whose loss is the mean image, and that learns nothing."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.draws: list[float] = []

    def step(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        self.draws.append(float(torch.rand(1, generator=rng)))
        self.seen.append(float(images.double().mean()))
        return {"loss": images.mean(), "twice": 2 * images.mean()}

    def averaged(self) -> nn.Module:
        return nn.Identity()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def noise_batches(step: int) -> tuple[Tensor, Tensor]:
    images = torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(step))
    return images, torch.zeros(BATCH, dtype=torch.long)


def test_records_hold_the_mean_loss_since_the_snapshot_before(tmp_path: Path) -> None:
    objective = Counting()
    records = train(
        objective,
        noise_batches,
        plan(snapshots=[0.5, 0.75, 1.0]),
        no_measures,
        folder=tmp_path,
        advance=lambda _: None,
    )
    means = [float(noise_batches(step)[0].double().mean()) for step in range(STEPS)]
    parts = [means[0:4], means[4:7], means[7:9]]
    for record, part in zip(records, parts, strict=True):
        assert record["loss"] == pytest.approx(sum(part) / len(part), abs=1e-7)
        assert record["twice"] == pytest.approx(2 * sum(part) / len(part), abs=1e-7)
        assert record["images_per_second"] > 0
    assert [record["images_seen"] for record in records] == [4 * BATCH, 7 * BATCH, 9 * BATCH]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert len(set(objective.draws)) == STEPS, "each step has its own randomness"


@pytest.mark.parametrize(
    ("images_seen", "shares", "num_steps", "steps"),
    [
        (72, [1 / 3, 2 / 3, 1.0], 9, [3, 6, 9]),
        (72, [0.5], 9, [4]),
        (72, [0.001, 0.01, 1.0], 9, [1, 9]),
        (3, [0.5, 1.0], 1, [1]),
        (100, [1.0], 12, [12]),
    ],
)
def test_snapshots_are_taken_at_their_shares_of_the_steps(
    images_seen: int, shares: list[float], num_steps: int, steps: list[int], tmp_path: Path
) -> None:
    each = plan(images_seen=images_seen, snapshots=shares)
    assert (each.num_steps, each.snapshot_steps) == (num_steps, steps)
    taken: list[int] = []

    def snapshot(model: nn.Module, images_seen: int, earlier: Sequence[Record]) -> Record:
        assert len(earlier) == len(taken)
        taken.append(images_seen)
        return {"score": float(len(taken))}

    objective = Counting()
    records = train(
        objective, noise_batches, each, snapshot, folder=tmp_path, advance=lambda _: None
    )
    assert taken == [step * BATCH for step in steps]
    assert [record["score"] for record in records] == list(range(1, len(steps) + 1))
    assert len(objective.seen) == num_steps


def test_patience_ends_training_early(tmp_path: Path) -> None:
    objective = Counting()
    records = train(
        objective,
        noise_batches,
        plan(out_of_patience=lambda records: len(records) == 2),
        no_measures,
        folder=tmp_path,
        advance=lambda _: None,
    )
    assert len(records) == 2
    assert len(objective.seen) == 6


def test_progress_is_told_in_images(tmp_path: Path) -> None:
    told: list[int] = []
    train(Counting(), noise_batches, plan(), no_measures, folder=tmp_path, advance=told.append)
    assert told == [BATCH * (step + 1) for step in range(STEPS)]


def test_the_state_is_saved_as_often_as_asked_and_a_crash_goes_on_from_it(tmp_path: Path) -> None:
    def crashing(step: int) -> tuple[Tensor, Tensor]:
        if step == 5:
            raise ZeroDivisionError
        return noise_batches(step)

    each = plan(save_seconds=0.0)
    with pytest.raises(ZeroDivisionError):
        train(Counting(), crashing, each, no_measures, folder=tmp_path, advance=lambda _: None)
    assert (tmp_path / SCRATCH / "state.safetensors").exists()
    objective = Counting()
    records = train(
        objective, noise_batches, each, no_measures, folder=tmp_path, advance=lambda _: None
    )
    assert len(objective.seen) == STEPS - 5
    assert [record["images_seen"] for record in records] == [24, 48, 72]
