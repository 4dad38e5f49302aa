"""A training of a run in several processes: what travels to them, and what they make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from knowledge_recycling import ranks
from knowledge_recycling.artefacts import Run
from knowledge_recycling.context import Context
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.errors import DataError, RecipeError
from knowledge_recycling.launch import launch
from knowledge_recycling.loggers import make_loggers
from knowledge_recycling.progress import Reporter
from knowledge_recycling.recipe import Recipe

Training = Callable[[Run, Path], None]
"""A training stage's work: a function by its name, so that it can travel."""


@dataclass(frozen=True)
class Errand:
    """A training as it travels: without the images, which each process reads itself."""

    training: Training
    folder: Path
    """The stage's, or the part's."""
    run: Path
    recipe: Recipe
    digests: Mapping[str, str]
    seed: int
    further: str | None

    def __call__(self, fabric: Fabric, reporter: Reporter) -> None:
        """Does this process's share of the training.

        Raises:
            DataError: The images are not those that the run began with.
        """
        splits = load_splits(self.recipe.data)
        if splits.digests() != self.digests:
            raise DataError(
                "the images changed while the run was at work",
                where="data",
                next_step="put them back, or start a new run with another --out",
            )
        loggers = make_loggers(self.recipe.logging, self.run) if ranks.is_first() else ()
        context = Context(
            fabric,
            self.seed,
            reporter,
            folder=self.run,
            loggers=loggers,
            compile=self.recipe.compute.compile,
        )
        run = Run(self.run, self.recipe, splits, self.digests, context, self.further)
        self.training(run, self.folder)


def together(training: Training, run: Run, folder: Path) -> None:
    """Does a training in as many processes as the run asks for: within this one, if it is one.

    Raises:
        KRError: What the training raises; a RunError if one of the processes was killed.
        Interrupted: A signal asked to stop.
    """
    context = run.context
    if context.devices == 1:
        training(run, folder)
        return
    recipe, digests = run.recipe, dict(run.digests)
    errand = Errand(training, folder, run.folder, recipe, digests, context.seed, run.further)
    launch(errand, recipe.compute, devices=context.devices, reporter=context.reporter, where=folder)


def check_shares(devices: int, batch_sizes: Mapping[str, int]) -> None:
    """Checks that processes which train together get equal shares of each batch.

    Raises:
        RecipeError: A batch size is no multiple of their number.
    """
    for key, size in batch_sizes.items():
        if size % devices:
            raise RecipeError(
                "a batch cannot be shared equally among the processes",
                where=key,
                expected=f"a multiple of compute.devices, {devices}",
                got=size,
                next_step=f"set {key} or compute.devices",
            )
