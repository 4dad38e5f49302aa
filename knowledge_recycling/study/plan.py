"""What a study compares: data sets, seeds, and rows, each row one change of the recipe."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from knowledge_recycling.compute import ComputeConfig
from knowledge_recycling.config import Config, validate
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.recipe import Recipe, apply_override, read_toml
from knowledge_recycling.storage import value_digest

OF_STUDENT = "student."
"""Settings that begin so change the row's student alone; all others need a run of their own."""


class Row(Config):
    """One line of the table: a classifier and how it came about."""

    name: str
    model: Literal["student", "teacher"] = "student"
    """`teacher`: the real-data reference, whatever the keys below."""
    candidate: Literal["chosen", "last", "test-selected"] = "chosen"
    """Whose images the student learns: the candidate of Checkpoint Optimisation, the last one, or,
    to show what that is worth, the one whose student is best on the test split."""
    knobs: Literal["chosen", "default"] = "chosen"
    """Knobs as Tuning chose them, or their defaults."""
    settings: tuple[str, ...] = ()
    """Changes of the recipe such as "student.hard_weight=1.0". Those of `student` train one more
    student on the same run, and win over tuned knobs; others make a run of their own."""

    @property
    def run_settings(self) -> tuple[str, ...]:
        """The settings that need a run of their own."""
        return tuple(each for each in self.settings if not each.strip().startswith(OF_STUDENT))

    @property
    def test_selected(self) -> bool:
        """Whether the test split made a choice."""
        return self.model == "student" and self.candidate == "test-selected"

    @property
    def label(self) -> str:
        """The name as tables and figures show it: what chose on test says so."""
        return f"{self.name} [test-selected]" if self.test_selected else self.name


class Study(Config):
    """Data sets x seeds x rows."""

    sets: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], Path | dict[str, Any]] = Field(
        min_length=1
    )
    """By name: the path of a recipe, or the tables of one."""
    seeds: tuple[NonNegativeInt, ...] = Field((0, 1, 2), min_length=1)
    """Of the runs; each makes everything anew."""
    settings: tuple[str, ...] = ()
    """Changes of every set's recipe, such as "tuning.trials=8"."""
    rows: tuple[Row, ...] = Field(default_factory=lambda: built_in_rows(), min_length=1)
    """Lines of the table; without any, those of the ablation."""
    more_rows: tuple[Row, ...] = ()
    """Lines after `rows`: what is compared with the ablation."""
    compute: ComputeConfig = ComputeConfig()
    """How sets and seeds are shared out: `workers`, `backend`, `address`, and the `threads` of all
    together. What a run computes with is in its recipe."""

    @property
    def lines(self) -> tuple[Row, ...]:
        """All rows, in the order of the table."""
        return self.rows + self.more_rows

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if len({row.name for row in self.lines}) < len(self.lines):
            raise ValueError("every row needs a name of its own")
        return self

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Study:
        """Returns the study of a TOML file, all recipes and rows checked.

        Args:
            path: The file.
            overrides: Changes of its keys, such as "compute.workers=2".

        Raises:
            RecipeError: A file is missing, or a key or value of the study or a recipe is wrong.
        """
        if not path.exists():
            raise RecipeError("there is no such study", where=path, expected="a TOML file")
        values = read_toml(path)
        for override in overrides:
            apply_override(values, override)
        study = validate(cls, values)
        for cell in study.cells():
            study.recipe(cell, cell.row.settings)
        return study

    def cells(self) -> Iterator[Cell]:
        """Yields all cells, those of one set and seed together."""
        for name in self.sets:
            for seed in self.seeds:
                yield from (Cell(name, seed, row) for row in self.lines)

    def recipe(self, cell: Cell, settings: tuple[str, ...]) -> Recipe:
        """Returns the recipe of the cell's set and seed, changed by the study and by `settings`.

        Raises:
            RecipeError: A file is missing, or a key or value is wrong.
        """
        base = self.sets[cell.set]
        values = read_toml(base) if isinstance(base, Path) else copy.deepcopy(base)
        for override in (*self.settings, *settings):
            apply_override(values, override)
        return Recipe.from_dict({**values, "seed": cell.seed})

    def digest(self, cell: Cell) -> str:
        """Returns what tells the cell from others, whatever its row is called."""
        recipe = self.recipe(cell, cell.row.settings).model_dump(mode="json", exclude_unset=True)
        row = cell.row.model_dump(mode="json", exclude={"name"})
        return value_digest({"recipe": recipe, "row": row})


@dataclass(frozen=True)
class Cell:
    """One row on one set with one seed."""

    set: str
    seed: int
    row: Row

    @property
    def folder(self) -> str:
        """Folder, in that of the study, of everything of its set and seed."""
        return f"{self.set}/seed-{self.seed}"

    @property
    def run_folder(self) -> str:
        """Folder of the run it looks at."""
        settings = self.row.run_settings
        suffix = f"-{value_digest(sorted(settings))[:8]}" if settings else ""
        return f"{self.folder}/run{suffix}"


def built_in_rows() -> tuple[Row, ...]:
    """Returns the rows of the ablation."""
    path = Path(str(files("knowledge_recycling.study").joinpath("rows.toml")))
    return tuple(validate(Row, row) for row in read_toml(path)["rows"])
