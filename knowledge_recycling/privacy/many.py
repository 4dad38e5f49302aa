"""Many small classifiers trained at once, each on its own members of one pool of images.

Their weights are stacked and every step is one step of all (`torch.vmap`); what each learns is what
it would learn alone. On a processor it pays for networks of matrix products, whose calls cost more
than their work; convolutions become grouped ones there, which are slower than one network after the
other (`benchmarks/audit_power.py` measures both).

Shapes: S shadows, N images, B images of a batch, C,H,W, K classes, Q queries.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional

from knowledge_recycling.compute import descend
from knowledge_recycling.config import Config
from knowledge_recycling.errors import DataError
from knowledge_recycling.privacy.signals import Bools
from knowledge_recycling.randomness import numpy_rng


class ManyTraining(Config):
    """How all of the classifiers are trained: SGD with momentum, no augmentation."""

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 50
    learning_rate: float = Field(0.1, gt=0)
    """At the start; falls linearly to 0."""
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)


@dataclass(frozen=True)
class Pool:
    """Images on the device, and which of them each shadow is trained on."""

    images: Tensor
    """[N,C,H,W] in [-1, 1]."""
    labels: Tensor
    """[N]"""
    members: Bools
    """[S,N], as many of each shadow."""


class Stack:
    """Networks of one shape as one: [S,B,C,H,W] or [B,C,H,W] to logits [S,B,K]."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        # vmap takes pooling of channels-last images apart into one call per network
        plain = [copy.deepcopy(each).to(memory_format=torch.contiguous_format) for each in networks]
        self.parameters, self.buffers = stack_module_state(plain)
        self.template = plain[0].to("meta")

    def __call__(self, images: Tensor, *, train: bool) -> Tensor:
        """Returns the logits; in training each network normalises by, and notes, its own batch."""
        self.template.train(train)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.template, (parameters, buffers), (x,))
            return logits

        dims = (0, 0, 0 if images.ndim == 5 else None)
        logits: Tensor = torch.vmap(one, in_dims=dims)(
            self.parameters, self.buffers, images.contiguous()
        )
        return logits


MIN_PER_SIDE = 2
"""Shadows that an image must be IN and OUT of: one is left where one shadow is the target."""


def half_memberships(shadows: int, images: int, rng: np.random.Generator) -> Bools:
    """Returns the membership [S,N]: each shadow has its own random half of the images.

    Halves are drawn independently. Were every image IN exactly half of the shadows, the others
    would tell whether it is IN the one left out as the target: that biases leave-one-out attacks
    below chance (by 3 points of AUC at 8 shadows, 1 at 16; docs/lab-book.md). Only images with
    fewer than two shadows on a side change places with others.

    Raises:
        DataError: There are too few shadows for that.

    >>> members = half_memberships(8, 6, np.random.default_rng(0))
    >>> members.sum(axis=1).tolist(), bool((members.sum(axis=0) >= 2).all())
    ([3, 3, 3, 3, 3, 3, 3, 3], True)
    """
    if shadows * (images // 2) < MIN_PER_SIDE * images:
        raise DataError(
            "not every image can be IN and OUT of two shadows",
            expected="more shadows",
            got=f"{shadows} shadows, {images} images",
        )
    members = np.stack([rng.permutation(images) < images // 2 for _ in range(shadows)])
    while True:
        counts = members.sum(axis=0)
        short = np.minimum(counts, shadows - counts) < MIN_PER_SIDE
        if not short.any():
            return members
        _swap(members, int(short.argmax()), rng)


def _swap(members: Bools, image: int, rng: np.random.Generator) -> None:
    """Exchanges the image with one of the opposite majority in a random shadow of its majority."""
    majority = members[:, image].mean() > 0.5
    row = rng.choice(np.flatnonzero(members[:, image] == majority))
    others = members.sum(axis=0) * (1 if majority else -1)  # the fewer of the majority's side...
    opposite = np.flatnonzero(members[row] != majority)
    other = opposite[np.argmin(others[opposite])]
    members[row, [image, other]] = members[row, [other, image]]


def epoch_rows(members: Bools, epoch: int, batch_size: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns the images of an epoch's batches, [batches,S,B]; a function of (seed, shadow, epoch).

    The last incomplete batch is dropped.

    Raises:
        DataError: Shadows differ in their number of members, or it is below the batch size.
    """
    sizes = members.sum(axis=1)
    if sizes.min() != sizes.max() or sizes.min() < batch_size:
        raise DataError(
            "shadows cannot be trained at once",
            where="members",
            expected=f"equally many members of each shadow, at least {batch_size}",
            got=f"{sizes.min()} to {sizes.max()}",
        )
    orders = [
        numpy_rng(seed, "many", s, epoch).permutation(np.flatnonzero(own))
        for s, own in enumerate(members)
    ]
    whole = int(sizes[0]) // batch_size
    rows = np.stack(orders)[:, : whole * batch_size].reshape(len(members), whole, batch_size)
    return rows.swapaxes(0, 1)


def train_many(
    networks: Sequence[nn.Module],
    pool: Pool,
    config: ManyTraining,
    *,
    seed: int,
) -> Stack:
    """Returns the networks trained on their members; those passed in are not changed.

    Raises:
        DataError: Shadows differ in their number of members, or it is below the batch size.
    """
    stack = Stack(networks)
    optimizer = torch.optim.SGD(
        stack.parameters.values(),
        config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    for epoch in range(config.epochs):
        batches = epoch_rows(pool.members, epoch, config.batch_size, seed)
        for batch, rows in enumerate(torch.from_numpy(batches).to(pool.labels.device)):
            share = (epoch + batch / len(batches)) / config.epochs
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 - share)
            descend(_loss(stack, pool, rows), optimizer)
    return stack


def _loss(stack: Stack, pool: Pool, rows: Tensor) -> Tensor:
    logits = stack(pool.images[rows], train=True)  # [S, B, K]
    loss = functional.cross_entropy(logits.flatten(0, 1).float(), pool.labels[rows].flatten())
    return loss * len(rows)  # a sum over the shadows: each has the gradient of its own mean


@torch.no_grad()
def logits_of_many(
    stack: Stack, queries: Sequence[Tensor], batch_size: int = 256
) -> npt.NDArray[np.float32]:
    """Returns the logits [S,Q,N,K] of queries, each the images [N,C,H,W] seen one way."""
    answers = [
        torch.cat([stack(part, train=False) for part in torch.split(images, batch_size)], dim=1)
        for images in queries
    ]
    return torch.stack(answers, dim=1).float().cpu().numpy()
