"""Training of generators: how long, on which batches, and when candidates are saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from knowledge_recycling.config import DERIVED, Config, Facts
from knowledge_recycling.data.augment import AugmentationName, augment
from knowledge_recycling.randomness import rng
from knowledge_recycling.storage import write_weights
from knowledge_recycling.training.batches import Balance, derived_batch_size, generator_length
from knowledge_recycling.training.loop import Batches, Record


class GeneratorTraining(Config):
    """How a generator is trained, whatever its kind."""

    images_seen: PositiveInt = DERIVED
    """Length of training; unset: 4,000 times the square root of the number of real images, or
    20,000 times the fourth root, if that is more."""
    batch_size: PositiveInt = DERIVED
    """Images per step; unset: 32 for small sets, up to 64 for large ones."""
    augment: tuple[AugmentationName, ...] = DERIVED
    """Augmentations it may learn to draw; unset: the flips measured to keep the class."""
    balance: Balance = "none"
    """`sampling` shows the generator all classes equally often; `loss` has no effect here."""
    candidates: PositiveInt = 3
    """Candidates saved along training, evenly spaced from `first_candidate` to the end."""
    first_candidate: float = Field(0.5, gt=0, le=1)
    """Share of training after which the first candidate is saved."""

    @staticmethod
    def length(num_images: int) -> int:
        """Returns the derived length for a number of real images."""
        return generator_length(num_images)

    def derived(self, facts: Facts) -> dict[str, Any]:
        """Derives length, batch size and flips from the set."""
        return {
            "images_seen": self.length(facts.num_train),
            "batch_size": derived_batch_size(facts.num_train, largest=64),
            "augment": facts.symmetries,
        }

    @property
    def candidate_shares(self) -> list[float]:
        """Shares of training after which a candidate is saved."""
        if self.candidates == 1:
            return [1.0]
        step = (1 - self.first_candidate) / (self.candidates - 1)
        return [self.first_candidate + step * i for i in range(self.candidates - 1)] + [1.0]


def augmented(batches: Batches, names: Sequence[str], seed: int, stream: str) -> Batches:
    """Returns the same batches, their images augmented by name."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        images, labels = batches(step)
        return augment(images, names, rng(seed, stream, "augment", step)), labels

    return draw


class SaveCandidates:
    """Snapshot that saves the averaged generator as a candidate of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, generator: nn.Module, images_seen: int, earlier: Sequence[Record]) -> Record:
        """Writes the weights; there is nothing to measure yet."""
        del earlier
        write_weights(self.folder / f"{candidate_name(images_seen)}.safetensors", generator)
        return {}


def candidate_name(images_seen: int) -> str:
    """Returns the name of the candidate saved after `images_seen`; names sort by age."""
    return f"candidate-{images_seen:09d}"


def images_of(candidate: Path) -> int:
    """Returns the images a candidate's generator had seen, from its file name."""
    return int(candidate.stem.rpartition("-")[2])
