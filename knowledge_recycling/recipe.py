"""The recipe: a whole run as frozen models; TOML in and out.

Each part is described beside what it configures; this module only composes them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeInt, model_validator

from knowledge_recycling.compute import ComputeConfig
from knowledge_recycling.config import (
    DERIVED,
    Config,
    Facts,
    PluginConfig,
    kind_module,
    plugin,
    validate,
)
from knowledge_recycling.data.sources import SourceConfig
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.loggers import LoggingConfig
from knowledge_recycling.privacy.audit import AuditConfig
from knowledge_recycling.privacy.policy import ReleasePolicy
from knowledge_recycling.recycling.distillation import KNOBS, StudentConfig
from knowledge_recycling.recycling.scoring import SelectionConfig
from knowledge_recycling.recycling.tuning import TuningConfig
from knowledge_recycling.rundir import flattened
from knowledge_recycling.training.classifier import TeacherTraining
from knowledge_recycling.training.generator import GeneratorTraining

FEW_IMAGES = 2_000
"""Up to so many training images, three teachers label by default."""


class TeacherConfig(Config):
    """The teacher: a classifier trained on the real images."""

    classifier: Annotated[
        PluginConfig, *plugin("models.classifiers", "teacher.classifier", "resnet")
    ] = Field(default_factory=dict, validate_default=True)
    """The network."""
    training: TeacherTraining = TeacherTraining()
    """Its training."""


class EvaluationConfig(Config):
    """The final look at the test split."""

    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples behind each interval."""
    quality_images: int = Field(1000, ge=50)
    """Synthetic images drawn to measure quality."""
    grid_images: int = Field(10, ge=1, le=50)
    """Images per class in the sample grids of the report."""

    def num_drawn(self, num_classes: int) -> int:
        """Returns the synthetic images drawn: enough for the quality and for the grids."""
        return max(self.quality_images, self.grid_images * num_classes)


class Recipe(Config):
    """A whole run."""

    data: Annotated[SourceConfig, *plugin("data.sources", "data", "digits")]
    """Where the images come from."""
    seed: int = Field(0, ge=0)
    """All randomness of the run derives from it."""
    teacher: TeacherConfig = TeacherConfig()
    further_teachers: NonNegativeInt = DERIVED
    """More teachers, alike but for their randomness: a student learns what all say together. What
    it is compared with is the `teacher` alone. Unset: 2 for up to 2,000 images, 0 for more."""
    generator: Annotated[PluginConfig, *plugin("models.generators", "generator", "flow")] = Field(
        default_factory=dict, validate_default=True
    )
    """The kind of generator and its own settings."""
    further_generators: dict[
        Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")],
        Annotated[PluginConfig, *plugin("models.generators", "further_generators", "flow")],
    ] = Field(default_factory=dict)
    """More generators, each a table with a name of yours; all draw equal shares of every class of
    a synthetic set. An empty table is another training of `generator`, with its own randomness."""
    generator_training: GeneratorTraining = GeneratorTraining()
    """Length and batches of each generator's training, whatever its kind."""
    selection: SelectionConfig = SelectionConfig()
    tuning: TuningConfig = TuningConfig()
    student: StudentConfig = StudentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    audit: AuditConfig = AuditConfig()
    release: ReleasePolicy = ReleasePolicy()
    compute: ComputeConfig = ComputeConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="before")
    @classmethod
    def _empty_tables_repeat_the_generator(cls, values: Any) -> Any:
        further = values.get("further_generators") if isinstance(values, Mapping) else None
        if not isinstance(further, Mapping):
            return values
        same = values.get("generator", {})
        return {**values, "further_generators": {k: v or same for k, v in further.items()}}

    def derived(self, facts: Facts) -> dict[str, Any]:
        """Derives whether further teachers label: where images are few, one teacher knows least."""
        return {"further_teachers": 2 if facts.num_train <= FEW_IMAGES else 0}

    def completed(self, facts: Facts) -> Self:
        """Returns the recipe with every underived field filled in from the set."""
        further = {name: each.completed(facts) for name, each in self.further_generators.items()}
        recipe = self.model_copy(update={"further_generators": further})
        if "classifier" not in self.student.model_fields_set:
            student = self.student.model_copy(update={"classifier": self.teacher.classifier})
            recipe = recipe.model_copy(update={"student": student})
        if "knobs" not in self.tuning.model_fields_set:
            tuning = self.tuning.model_copy(update={"knobs": self._knobs_worth_tuning()})
            recipe = recipe.model_copy(update={"tuning": tuning})
        return super(Recipe, recipe).completed(facts)

    def _knobs_worth_tuning(self) -> tuple[str, ...]:
        kinds = [each.kind for each in (self.generator, *self.further_generators.values())]
        families = [kind_module("models.generators", kind).KNOBS for kind in kinds]
        knobs = [item for family in (*families, KNOBS) for item in family.items()]
        return tuple(dict.fromkeys(name for name, knob in knobs if knob.tuned))

    @classmethod
    def load(cls, path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
        """Returns the recipe of a TOML file, changed by `overrides` such as "seed=1".

        Raises:
            RecipeError: The file is missing or not TOML, or a key or value is wrong.
        """
        values = read_toml(Path(path))
        for override in overrides:
            apply_override(values, override)
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Returns the recipe of nested mappings, as TOML gives them.

        Raises:
            RecipeError: A key or value is wrong.
        """
        return validate(cls, values)


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML file.

    Raises:
        RecipeError: It is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise RecipeError(
            "there is no such recipe" if missing else "the recipe cannot be read",
            where=path,
            expected="a TOML file",
            got=None if missing else error,
            next_step="write one with: kr new RECIPE" if missing else "correct the file",
        ) from error


def apply_override(values: dict[str, Any], override: str) -> None:
    """Sets one key of `values`; `override` is "dotted.key=value", the value in TOML.

    Raises:
        RecipeError: It is not of that form.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise _bad_override("has no value", override)
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise _bad_override(f"goes into '{table}', which is not a table", override)
    values[last] = _toml_value(text.strip())


def _bad_override(fault: str, override: str) -> RecipeError:
    return RecipeError(
        f"an override {fault}",
        where=f"--set {override}",
        expected="dotted.key=value",
        got=override,
        next_step="correct the override",
    )


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string, so that a shell needs no quotes in quotes


def changed_settings(recipe: Recipe) -> dict[str, Any]:
    """Returns the settings that were given, not derived or default, by dotted key."""
    given = recipe.model_dump(mode="json", exclude_unset=True)
    return {
        key: value for name, inner in given.items() for key, value in flattened(name, inner).items()
    }
