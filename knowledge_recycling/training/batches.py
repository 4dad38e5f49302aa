"""Batches of a fixed image set as a function of the step number."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from knowledge_recycling.data.images import ImageSet, to_unit
from knowledge_recycling.randomness import numpy_rng

Balance = Literal["none", "loss", "sampling"]
"""What is done about unequal classes: nothing, weights in the loss, or equal draws."""


class Shuffled:
    """Endless epochs of a set, each in its own order; batch i is a function of (seed, name, i).

    The last incomplete batch of an epoch is dropped. With `balance="sampling"` each image is
    drawn with a probability inverse to the size of its class, with replacement.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        *,
        seed: int,
        name: str,
        balance: Balance = "none",
        device: torch.device | None = None,
    ) -> None:
        self.image_set = image_set
        self.batch_size = batch_size
        self.seed = seed
        self.name = name
        self.balance = balance
        self.device = device or torch.device("cpu")
        self._epoch: tuple[int, npt.NDArray[np.int64]] | None = None

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns the images [N,C,H,W] in [-1, 1] and labels [N] of batch `step`."""
        epoch, batch = divmod(step, steps_per_epoch(len(self.image_set), self.batch_size))
        rows = self._order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        images = to_unit(self.image_set.images[rows]).to(self.device)
        return images, torch.from_numpy(self.image_set.labels[rows]).to(self.device)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Returns the rows of an epoch; the last one asked for is kept, for the steps to come."""
        known = self._epoch
        if known is None or known[0] != epoch:
            known = self._epoch = (epoch, self._drawn_order(epoch))
        return known[1]

    def _drawn_order(self, epoch: int) -> npt.NDArray[np.int64]:
        random = numpy_rng(self.seed, self.name, "order", epoch)
        size = len(self.image_set)
        if self.balance != "sampling":
            return random.permutation(size)
        chances = class_weights(self.image_set)[self.image_set.labels] / size
        return random.choice(size, size, p=chances)


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Returns the number of whole batches in an epoch, at least 1."""
    return max(1, size // batch_size)


def teacher_length(num_images: int) -> int:
    """Returns the images that a teacher's training sees: 3,000 N^(1/2), repeated ones too.

    The smaller the set, the sooner it has taught all it can.
    """
    return round(3000 * math.sqrt(num_images))


def student_length(num_images: int) -> int:
    """Returns the images that a student's training sees: 6,000 N^(1/2), or 50,000 N^(1/4).

    The latter beside few real images (under 4,823): synthetic ones come all along, and coming near
    a teacher takes its thousands of steps however few images that has seen.
    """
    return _never_short(num_images, by_square_root=6000, by_fourth_root=50_000)


def generator_length(num_images: int) -> int:
    """Returns the images that the training of a generator sees: 4,000 N^(1/2), or 20,000 N^(1/4).

    The latter of few images (under 625): it needs its thousands of steps however small the set.
    """
    return _never_short(num_images, by_square_root=4000, by_fourth_root=20_000)


def _never_short(num_images: int, *, by_square_root: int, by_fourth_root: int) -> int:
    root = math.sqrt(num_images)
    return round(max(by_square_root * root, by_fourth_root * math.sqrt(root)))


def derived_batch_size(num_images: int, *, largest: int) -> int:
    """Returns the power of two near a sixteenth of the set, 32 to `largest`, not above the set."""
    power = round(math.log2(num_images / 16)) if num_images > 16 else 0
    wanted = min(largest, max(32, 1 << power))
    return min(wanted, 1 << int(math.log2(num_images)))


def class_weights(image_set: ImageSet) -> npt.NDArray[np.float64]:
    """Returns weights [K] inverse to the class sizes, their mean over the images 1."""
    counts = np.maximum(image_set.class_counts(), 1)
    return np.asarray(len(image_set) / (image_set.num_classes * counts), dtype=np.float64)
