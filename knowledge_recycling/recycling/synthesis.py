"""Synthetic sets drawn from a generator, and the regenerating stream a student learns from.

Shapes: M images of a synthetic set, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from knowledge_recycling import interruption, ranks
from knowledge_recycling.config import DERIVED, Config, Facts
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet, to_bytes
from knowledge_recycling.errors import DataError
from knowledge_recycling.models.contracts import Generator
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.randomness import Name, named_seed, numpy_rng
from knowledge_recycling.recycling.filtering import (
    FilterConfig,
    Filtered,
    sample_filtered,
)
from knowledge_recycling.storage import written_beside
from knowledge_recycling.training.batches import Shuffled, steps_per_epoch

CHUNK = 256
"""Images sampled at a time: large enough to fill a processor, small enough for its memory."""


class SynthesisConfig(Config):
    """Which synthetic images a student sees."""

    set_size: float = Field(1.0, gt=0, le=100)
    """Images of one synthetic set, as a multiple of the real training images."""
    period: NonNegativeInt = DERIVED
    """Epochs between regenerations; 0: one fixed set; unset: 1 on a GPU, 8 on a CPU, where
    sampling is dear."""
    prior: Literal["balanced", "real"] = "balanced"
    """Law of the class labels: equal shares, or the shares of the real training set."""
    filter: FilterConfig | None = None
    """Keeps images that the teacher recognises; unset: keeps all."""
    evaluations: NonNegativeInt = 0
    """Evaluations of the generator's network for an image: before a full student learns, a
    generator that takes more is distilled to so many; 0: it stays as it was trained."""

    def derived(self, facts: Facts) -> dict[str, Any]:
        """Derives the period from the hardware."""
        return {"period": 1 if facts.on_gpu else 8}


@dataclass
class Tally:
    """What a synthesis has cost and where the filter gave up."""

    sampled: int = 0
    unfiltered: int = 0
    """Images taken though the teacher rejected every try."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Source:
    """A generator ready to draw synthetic sets from."""

    generator: Generator
    knobs: Knobs
    class_names: tuple[str, ...]
    prior: npt.NDArray[np.float64]
    """[K] shares of the classes."""
    filter: FilterConfig | None
    teacher: nn.Module
    """Asked by the filter only."""
    tally: Tally = field(default_factory=Tally)
    further: tuple[Source, ...] = ()
    """Sources whose generators and knobs draw equal shares of each class beside this one's."""

    @property
    def each_generator(self) -> tuple[Source, ...]:
        """The source of each generator, this one first."""
        return (self, *self.further)


def mixed(sources: Sequence[Source]) -> Source:
    """Returns one source that draws each class in equal shares from all of `sources`."""
    return replace(sources[0], further=tuple(sources[1:]))


def class_prior(real: ImageSet, prior: Literal["balanced", "real"]) -> npt.NDArray[np.float64]:
    """Returns the shares [K] that the classes have in a synthetic set."""
    counts = real.class_counts() if prior == "real" else np.ones(real.num_classes)
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def draw_labels(
    shares: npt.NDArray[np.float64], size: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Returns [size] labels in random order, each class within one image of its share.

    Systematic sampling: equally spaced points with a random start, so that no class is short.
    """
    points = (np.arange(size) + random.random()) / size
    labels = np.searchsorted(np.cumsum(shares), points).clip(max=len(shares) - 1)
    return random.permutation(labels).astype(np.int64)


def draw_owners(
    labels: npt.NDArray[np.int64], num_generators: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Returns which generator draws each image, [M], from 0.

    They take turns within each class, so that their shares of it are within one image; chance says
    who begins.
    """
    owners = np.zeros_like(labels)
    for k in np.unique(labels):
        turns = np.arange(np.sum(labels == k)) + random.integers(num_generators)
        owners[labels == k] = turns % num_generators
    return owners


def draw_set(
    source: Source, size: int, path: Path, names: tuple[Name, ...], context: Context
) -> None:
    """Writes a synthetic set of `size` images to `path`.npy and its labels beside it.

    Images are written as they come, so memory does not grow with `size`. The set is a function of
    the generators' weights, their knobs, the run's seed and `names`; labels and seeds are the same
    whichever generator draws.

    Raises:
        DataError: The filter rejected every image of a class.
        Interrupted: A signal asked to stop.
    """
    labels = draw_labels(source.prior, size, numpy_rng(context.seed, *names, "labels"))
    first_seed = named_seed(context.seed, *names, "latents") >> 1
    turns = numpy_rng(context.seed, *names, "generators")
    owners = draw_owners(labels, len(source.each_generator), turns)
    images = _chunks(source, labels, owners, first_seed, context)
    with written_beside(path) as beside, beside.open("wb") as file:
        for index, chunk in enumerate(images):
            if index == 0:
                _write_header(file, (size, *chunk.shape[1:]))
            file.write(chunk.tobytes())
    with written_beside(labels_path(path)) as beside, beside.open("wb") as file:
        np.save(file, labels, allow_pickle=False)
    ranks.barrier()  # who did not write will read


def open_set(path: Path, class_names: tuple[str, ...]) -> ImageSet:
    """Returns a set that `draw_set` wrote, its images memory-mapped."""
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    return ImageSet(images, np.load(labels_path(path), allow_pickle=False), class_names)


def labels_path(path: Path) -> Path:
    """Returns where the labels of the set at `path` are."""
    return path.with_suffix(".labels.npy")


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _chunks(
    source: Source,
    labels: npt.NDArray[np.int64],
    owners: npt.NDArray[np.int64],
    first_seed: int,
    context: Context,
) -> Iterator[npt.NDArray[np.uint8]]:
    for each in source.each_generator:
        each.generator.eval()
    accepted = np.zeros(len(labels), dtype=bool)
    with context.reporter.task("sampling", len(labels)) as advance:
        together = CHUNK * ranks.count()  # each of several processes samples its share
        for start in range(0, len(labels), together):
            interruption.check()
            began = time.monotonic()
            size = min(together, len(labels) - start)
            rows = ranks.own_rows(size) + start
            part = torch.from_numpy(labels)[rows].to(context.fabric.device)
            drawn = _draw_shared(source, part, rows + first_seed, owners[rows.numpy()], context)
            taken = ranks.gathered(drawn.accepted.cpu(), size).numpy()
            accepted[start : start + size] = taken
            yield ranks.gathered(to_bytes(drawn.images).cpu(), size).numpy()
            source.tally.seconds += time.monotonic() - began
            advance(start + size)
    source.tally.sampled += len(labels)
    source.tally.unfiltered += int((~accepted).sum())
    _check_accepted(source, labels, accepted)


def draw(source: Source, labels: Tensor, seeds: Tensor, context: Context) -> Tensor:
    """Returns unfiltered images [M,C,H,W] in [-1, 1] for labels [M] and seeds [M].

    They are of the source's own generator, whatever is mixed in.
    """
    with context.fabric.autocast():
        return source.generator.sample(labels, seeds, source.knobs).float()


def _draw_shared(
    source: Source,
    labels: Tensor,
    seeds: Tensor,
    owners: npt.NDArray[np.int64],
    context: Context,
) -> Filtered:
    if not source.further:
        return _draw_filtered(source, labels, seeds, context)
    sources = source.each_generator
    rows = [torch.from_numpy(np.flatnonzero(owners == i)) for i in range(len(sources))]
    parts = [
        _draw_filtered(each, labels[own.to(labels.device)], seeds[own], context)
        for each, own in zip(sources, rows, strict=True)
        if len(own)
    ]
    order = torch.cat(rows).argsort()
    images = torch.cat([part.images.cpu() for part in parts])
    accepted = torch.cat([part.accepted.cpu() for part in parts])
    return Filtered(images[order], accepted[order])


def _draw_filtered(source: Source, labels: Tensor, seeds: Tensor, context: Context) -> Filtered:
    sample = partial(draw, source, context=context)
    if source.filter is None:
        return Filtered(sample(labels, seeds), torch.ones(len(labels), dtype=torch.bool))
    return sample_filtered(sample, labels, seeds, source.teacher, source.filter)


def _check_accepted(
    source: Source, labels: npt.NDArray[np.int64], accepted: npt.NDArray[np.bool_]
) -> None:
    for k, name in enumerate(source.class_names):
        of_class = labels == k
        if source.filter is not None and of_class.any() and not accepted[of_class].any():
            raise DataError(
                f"the filter rejected every synthetic image of class '{name}'",
                where="synthesis.filter",
                expected=f"some with a teacher probability above {source.filter.threshold}",
                got=f"0 of {of_class.sum()}, each tried {source.filter.retries + 1} times",
                next_step="lower the threshold, train the generator longer, or drop the filter",
            )


class RegeneratingStream:
    """Batches of synthetic images, drawn anew every `period` epochs; period 0: one fixed set.

    Only the current set is on the disk and one batch in memory. Batch i is a function of the
    source and (seed, name, i).
    """

    def __init__(
        self,
        source: Source,
        *,
        size: int,
        batch_size: int,
        period: int,
        name: str,
        folder: Path,
        context: Context,
    ) -> None:
        self.source = source
        self.size = size
        self.batch_size = batch_size
        self.period = period
        self.name = name
        self.folder = folder
        self.context = context

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns images [N,C,H,W] in [-1, 1] and the labels [N] they were drawn for."""
        epoch = step // steps_per_epoch(self.size, self.batch_size)
        path = self._set_of_round(epoch // self.period if self.period else 0)
        # mapped anew for each batch: pages of a mapping that stays open would fill the memory
        return Shuffled(
            open_set(path, self.source.class_names),
            self.batch_size,
            seed=self.context.seed,
            name=self.name,
            device=self.context.fabric.device,
        )(step)

    def _set_of_round(self, number: int) -> Path:
        path = self.folder / f"round-{number:04d}.npy"
        if not labels_path(path).exists():
            for outdated in self.folder.glob("round-*"):
                outdated.unlink(missing_ok=True)  # another process may be faster
            draw_set(self.source, self.size, path, (self.name, "round", number), self.context)
        return path
