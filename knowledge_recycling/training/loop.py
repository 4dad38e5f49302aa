"""The one training loop: generators, teachers and students all learn here.

Batch i and its randomness are functions of (seed, name, i), so a resumed training equals an
uninterrupted one bit for bit on the CPU; the clock is the number of images seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from knowledge_recycling import interruption, ranks
from knowledge_recycling.progress import Advance
from knowledge_recycling.randomness import rng
from knowledge_recycling.rundir import SCRATCH
from knowledge_recycling.storage import read_state, write_state, write_text

Batches = Callable[[int], tuple[Tensor, Tensor]]
"""Step number to images [N,C,H,W] in [-1, 1] and labels [N], both on the device."""

Record = dict[str, float]
"""Measures at one moment of training, `images_seen` among them."""

GiveUp = Callable[[Sequence[Record]], bool]
"""Whether a training with these records, one a snapshot so far, is to end."""

METRICS = "metrics.jsonl"

Snapshot = Callable[[nn.Module, int, Sequence[Record]], Record]
"""Averaged model, images seen and earlier records to measures; may save the model."""


def never(records: Sequence[Record]) -> bool:
    """Returns that a training need not be given up, whatever it has reached."""
    del records
    return False


def steps_for(images_seen: int, batch_size: int) -> int:
    """Returns the steps of a training of so many images."""
    return max(1, round(images_seen / batch_size))


class Objective(Protocol):
    """What a model minimises; owns its optimisers, so every kind of model shares the loop."""

    def step(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Takes one optimisation step and returns its losses."""

    def averaged(self) -> nn.Module:
        """Returns the model with averaged weights."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all that resuming needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train and when to look."""

    seed: int
    name: str
    """Names the random streams: "teacher", "student"..."""
    images_seen: int
    batch_size: int
    snapshots: Sequence[float]
    """Shares of training, in rising order and up to 1, after which a snapshot is taken."""
    out_of_patience: GiveUp = never
    """Told the records so far after each snapshot; true ends training early."""
    save_seconds: float = 60.0
    """A resumable state is written about this often."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return steps_for(self.images_seen, self.batch_size)

    @property
    def snapshot_steps(self) -> list[int]:
        """Numbers of steps after which a snapshot is taken."""
        return sorted({max(1, round(share * self.num_steps)) for share in self.snapshots})


@dataclass
class State:
    """Where a training stands, beside the state of its objective."""

    step: int = 0
    records: list[Record] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Sums since the last snapshot."""
    num_summed: int = 0


def train(
    objective: Objective,
    batches: Batches,
    plan: Plan,
    snapshot: Snapshot,
    *,
    folder: Path,
    advance: Advance,
    log: Callable[[Record], None] = lambda _: None,
) -> list[Record]:
    """Trains `objective` in `folder`, from the state saved there if any; returns the records.

    At each snapshot a record joins `metrics.jsonl`: images seen, mean losses since the snapshot
    before, images per second, and the snapshot's own measures. `log` is told it as well.

    Raises:
        Interrupted: A signal asked to stop; the state has been saved.
    """
    state = restore(objective, folder)
    saved_at, rate = time.monotonic(), Rate(state.step * plan.batch_size)
    while True:
        # Take a snapshot.
        if state.num_summed and state.step in plan.snapshot_steps:
            images_seen = state.step * plan.batch_size
            record = {"images_seen": images_seen, "images_per_second": rate.since(images_seen)}
            measures = ranks.told(partial(look, objective, snapshot, images_seen, state.records))
            state.records.append(record | mean_losses(state) | measures)
            state.losses, state.num_summed = {}, 0
            write_records(folder, state.records)
            log(state.records[-1])
            rate = Rate(images_seen)
            if plan.out_of_patience(state.records):
                break

        # Done?
        if state.step >= plan.num_steps:
            break

        # Save what resuming needs.
        stop = interruption.requested()
        if stop or time.monotonic() - saved_at > plan.save_seconds:
            save(objective, state, folder)
            saved_at = time.monotonic()
        if stop:
            raise interruption.Interrupted

        # Learn from one batch.
        images, labels = batches(state.step)
        losses = objective.step(images, labels, rng(plan.seed, plan.name, "step", state.step))
        add_losses(state, losses)
        state.step += 1
        advance(state.step * plan.batch_size)
    return state.records


def look(
    objective: Objective, snapshot: Snapshot, images_seen: int, earlier: Sequence[Record]
) -> Record:
    """Returns the measures of a snapshot of the averaged model."""
    return snapshot(objective.averaged(), images_seen, earlier)


class Rate:
    """Images per second since it was made."""

    def __init__(self, images_seen: int) -> None:
        self.images_seen = images_seen
        self.start = time.monotonic()

    def since(self, images_seen: int) -> float:
        """Returns the rate up to `images_seen`."""
        return (images_seen - self.images_seen) / (time.monotonic() - self.start)


def add_losses(state: State, losses: Mapping[str, Tensor]) -> None:
    """Adds the losses of one step, without waiting for the device."""
    for name, loss in losses.items():
        state.losses[name] = state.losses.get(name, 0.0) + ranks.averaged(loss.double())
    state.num_summed += 1


def mean_losses(state: State) -> Record:
    """Returns the mean of each loss since the last snapshot."""
    return {name: float(loss) / state.num_summed for name, loss in state.losses.items()}


def save(objective: Objective, state: State, folder: Path) -> None:
    """Writes all that `restore` needs."""
    content = {"objective": objective.state_dict(), "loop": vars(state)}
    write_state(folder / SCRATCH / "state.safetensors", content)


def restore(objective: Objective, folder: Path) -> State:
    """Restores `objective` from the state saved in `folder`; a new state if there is none."""
    path = folder / SCRATCH / "state.safetensors"
    if not path.exists():
        return State()
    content = read_state(path)
    objective.load_state_dict(content["objective"])
    return State(**content["loop"])


def write_records(folder: Path, records: Sequence[Record]) -> None:
    """Writes the records as JSON lines."""
    write_text(folder / METRICS, "".join(json.dumps(record) + "\n" for record in records))


def read_records(folder: Path) -> list[Record]:
    """Returns the records that a training left in `folder`."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
