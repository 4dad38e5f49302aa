"""What stages leave in a run folder, read back as ready objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from knowledge_recycling.clusters import Workers
from knowledge_recycling.config import PluginConfig, kind_module
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet, Splits
from knowledge_recycling.models.build import build_classifier, build_generator, frozen
from knowledge_recycling.models.contracts import Classifier, Generator
from knowledge_recycling.models.knobs import Knob, Knobs
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.recipe import Recipe, TeacherConfig
from knowledge_recycling.recycling.acceleration import with_accelerated
from knowledge_recycling.recycling.distillation import (
    KNOBS,
    Ensemble,
    Lesson,
    StudentConfig,
    Teacher,
    student_knobs,
    with_knobs,
)
from knowledge_recycling.recycling.synthesis import Source, class_prior, mixed
from knowledge_recycling.storage import read_json, read_weights
from knowledge_recycling.training.classifier import WEIGHTS

DATA = "data.json"
"""The set as seen, in the folder of the stage `data`."""
ENSEMBLE = "ensemble"
"""The stage of the further teachers."""
TEACHER = "teacher.json"
"""What a teacher reached, beside its weights."""
STUDENT = "student.json"
"""What a student reached, beside its weights."""


@dataclass(frozen=True)
class Run:
    """A run at work: its folder, its completed recipe, its images and its surroundings."""

    folder: Path
    recipe: Recipe
    splits: Splits
    digests: Mapping[str, str]
    """SHA-256 of each split by name, computed once: a set may be large."""
    context: Context
    further: str | None = None
    """Which of the further generators the run is seen for; `None`: the recipe's `generator`."""

    @property
    def generator(self) -> PluginConfig:
        """The generator the run is seen for."""
        recipe = self.recipe
        return recipe.generator if self.further is None else recipe.further_generators[self.further]

    @property
    def part(self) -> str:
        """Folder of the generator within the stages that each generator has for itself."""
        return "" if self.further is None else f"generator-{self.further}"

    @property
    def of_further(self) -> list[Run]:
        """The run as seen for each further generator."""
        return [replace(self, further=name) for name in self.recipe.further_generators]

    @property
    def each_generator(self) -> list[Run]:
        """The run as seen for each generator, the recipe's `generator` first."""
        return [self, *self.of_further]

    def for_workers(self, workers: Workers) -> Run:
        """The run as its parts see it: only one in this process may tell how far it is."""
        if workers.backend == "here":
            return self
        context = replace(self.context, reporter=SilentReporter(), loggers=())
        return replace(self, context=context)

    @property
    def members(self) -> ImageSet:
        """The real images that teacher and generator are trained on."""
        return self.splits.train

    @property
    def val(self) -> ImageSet:
        """The real images that choices are made on."""
        return self.splits.val


def new_classifier(run: Run, who: Literal["teacher", "student"]) -> Classifier:
    """Returns the untrained teacher or student."""
    config: TeacherConfig | StudentConfig = getattr(run.recipe, who)
    classifier = build_classifier(
        config.classifier,
        run.members.shape,
        run.members.num_classes,
        fabric=run.context.fabric,
        seed=run.context.seed,
        name=who,
    )
    return run.context.compiled(classifier)


def new_generator(run: Run) -> Generator:
    """Returns the untrained generator."""
    generator = build_generator(
        run.generator,
        run.members.shape,
        run.members.num_classes,
        fabric=run.context.fabric,
        seed=run.context.seed,
        name=generator_name(run),
    )
    return run.context.compiled_sampler(generator)


def generator_name(run: Run) -> str:
    """Returns what names the generator's random streams, progress line and audit."""
    return "generator" if run.further is None else f"generator {run.further}"


def load_teacher(run: Run) -> Teacher:
    """Returns the trained teacher, frozen, with its calibration temperature."""
    return _teacher_in(run.folder / "teacher", run)


def load_ensemble(run: Run) -> Ensemble:
    """Returns all trained teachers, the recipe's `teacher` first: they label a student's images."""
    further = [_teacher_in(folder, run) for folder in further_teachers(run, run.folder / ENSEMBLE)]
    return Ensemble([load_teacher(run), *further])


def further_teachers(run: Run, folder: Path) -> list[Path]:
    """Returns where the further teachers are in the stage's `folder`."""
    return [folder / f"teacher-{number + 2}" for number in range(run.recipe.further_teachers)]


def _teacher_in(folder: Path, run: Run) -> Teacher:
    classifier = new_classifier(run, "teacher")
    read_weights(folder / WEIGHTS, classifier)
    return Teacher(classifier, read_json(folder / TEACHER)["temperature"])


def load_student(run: Run) -> Classifier:
    """Returns the trained student, frozen."""
    classifier = new_classifier(run, "student")
    read_weights(run.folder / "student" / WEIGHTS, classifier)
    return frozen(classifier)


def candidate_files(run: Run) -> list[Path]:
    """Returns the weights of the candidates, oldest first."""
    return sorted((run.folder / "generator" / run.part).glob("candidate-*.safetensors"))


def chosen_candidate(run: Run) -> Path:
    """Returns the weights of the candidate that Checkpoint Optimisation chose."""
    name = chosen(run.folder / "candidates" / run.part / "candidates.json")["name"]
    return run.folder / "generator" / run.part / f"{name}.safetensors"


def chosen_knobs(run: Run) -> Knobs:
    """Returns the knobs that Tuning chose."""
    knobs: Knobs = chosen(run.folder / "tuning" / run.part / "trials.json")["knobs"]
    return knobs


def candidate_finalist(run: Run, candidate: Path) -> Path:
    """Returns the folder of a candidate's full student, if it was a finalist."""
    return run.folder / "candidates" / run.part / f"finalist-{candidate.stem}"


def finalist_folder(run: Run, trial: int) -> Path:
    """Returns the folder of the full student with the knobs of a trial, if it was a finalist.

    With the default knobs Checkpoint Optimisation may have trained it.
    """
    earlier = candidate_finalist(run, chosen_candidate(run))
    if trial == 0 and earlier.exists():
        return earlier
    return run.folder / "tuning" / f"finalist-{trial:03d}"


def chosen(table: Path) -> dict[str, Any]:
    """Returns the row of a table of candidates or trials that was chosen."""
    row: dict[str, Any] = next(row for row in read_json(table) if row["chosen"])
    return row


def generator_knobs(run: Run) -> dict[str, Knob]:
    """Returns the knobs of the kind of generator."""
    knobs: dict[str, Knob] = kind_module("models.generators", run.generator.kind).KNOBS
    return knobs


def known_knobs(run: Run) -> dict[str, Knob]:
    """Returns all knobs that tuning may turn: the generator's and the student's.

    There is one student, so its knobs are tuned with the recipe's `generator` only.
    """
    own = generator_knobs(run)
    return own if run.further is not None else own | student_knobs(run.recipe.student)


def load_source(run: Run, teacher: nn.Module, candidate: Path, knobs: Knobs) -> Source:
    """Returns a candidate ready to draw synthetic sets with those of `knobs` that concern it."""
    generator = new_generator(run)
    read_weights(candidate, generator)
    synthesis = with_knobs(run.recipe.student, knobs).synthesis
    own = generator_knobs(run)
    return Source(
        generator=frozen(generator),
        knobs={name: value for name, value in knobs.items() if name in own},
        class_names=run.members.class_names,
        prior=class_prior(run.members, synthesis.prior),
        filter=synthesis.filter,
        teacher=teacher,
    )


def chosen_source(run: Run, teacher: nn.Module) -> Source:
    """Returns the generators, each with its chosen candidate and knobs, in equal shares."""
    shared = {name: value for name, value in chosen_knobs(run).items() if name in KNOBS}
    return mixed(
        [
            load_source(each, teacher, chosen_candidate(each), {**shared, **chosen_knobs(each)})
            for each in run.each_generator
        ]
    )


def student_source(run: Run, teacher: nn.Module) -> Source:
    """Returns `chosen_source` as the student learned from it: accelerated, if it was."""
    return with_accelerated(chosen_source(run, teacher), run.folder / "student", run.context)


def lesson_of(
    run: Run, teachers: Ensemble, source: Source, *, config: StudentConfig, name: str
) -> Lesson:
    """Returns the lesson of a student of `config` on the images of `source`."""
    balanced = run.recipe.teacher.training.balance != "none"
    return Lesson(
        config=config,
        source=source,
        teachers=teachers,
        teacher_prior=class_prior(run.members, "balanced" if balanced else "real"),
        num_train=len(run.members),
        val=run.val,
        name=name,
    )
