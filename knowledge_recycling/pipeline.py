"""The run, top to bottom: which stage follows which, and what each depends on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from knowledge_recycling import auditing, choosing, stages
from knowledge_recycling.artefacts import DATA, ENSEMBLE, Run, new_classifier, new_generator
from knowledge_recycling.compute import make_fabric
from knowledge_recycling.config import Facts, did_you_mean
from knowledge_recycling.context import Context
from knowledge_recycling.data.augment import measured_symmetries
from knowledge_recycling.data.images import Splits
from knowledge_recycling.data.inspection import inspect
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.errors import RecipeError, RunError
from knowledge_recycling.loggers import make_loggers
from knowledge_recycling.progress import Noted, Reporter, SilentReporter
from knowledge_recycling.recipe import Recipe, apply_override
from knowledge_recycling.releasing import bundle as bundles
from knowledge_recycling.releasing.bundle import Order
from knowledge_recycling.reporting.reading import parse_result, read_result
from knowledge_recycling.reporting.report import write_report
from knowledge_recycling.reporting.result import Result
from knowledge_recycling.rundir import (
    DONE,
    Fingerprint,
    check_done,
    flattened,
    locked,
    output_digest,
    perform,
)
from knowledge_recycling.shadows import MADE_BY
from knowledge_recycling.storage import read_json, read_sealed, write_json, write_sealed
from knowledge_recycling.summary import RESULT, summarise
from knowledge_recycling.together import check_shares, together


@dataclass(frozen=True)
class Stage:
    """One row of the method's table."""

    name: str
    """Its folder in the run folder."""
    work: Callable[[Run, Path], None]
    settings: tuple[str, ...]
    """Parts of the recipe it depends on, by dotted name."""
    inputs: tuple[str, ...]
    """Stages whose outputs it reads; their digests are part of its fingerprint."""
    splits: tuple[str, ...]
    """Splits of the real set it looks at."""
    version: int = 1
    """Raised when the same settings and inputs begin to give other outputs."""


LABELLERS = ("teacher", ENSEMBLE)
"""Stages whose classifiers label synthetic images."""
STAGES = (
    Stage(
        "teacher",
        partial(together, stages.train_teacher),
        ("teacher",),
        (),
        ("train", "val"),
        version=2,
    ),
    Stage(ENSEMBLE, stages.train_ensemble, ("teacher", "further_teachers"), (), ("train", "val")),
    Stage(
        "generator",
        stages.train_generator,
        ("generator", "further_generators", "generator_training"),
        (),
        ("train",),
        version=2,
    ),
    Stage(
        "candidates",
        choosing.optimise_checkpoint,
        ("student", "selection", "tuning.leakage_limit"),
        (*LABELLERS, "generator"),
        ("val",),
        version=8,
    ),
    Stage(
        "tuning",
        choosing.tune_knobs,
        ("student", "selection", "tuning"),
        (*LABELLERS, "generator", "candidates"),
        ("val",),
        version=8,
    ),
    Stage(
        "student",
        partial(together, stages.distil_student),
        ("student", "tuning.leakage_limit"),
        (*LABELLERS, "generator", "candidates", "tuning"),
        ("val",),
        version=3,
    ),
    Stage(
        "evaluation",
        stages.evaluate,
        ("evaluation",),
        (*LABELLERS, "generator", "candidates", "tuning", "student"),
        ("train", "val", "test"),
    ),
    Stage("audit", auditing.audit, MADE_BY, ("tuning",), ("train", "val"), version=8),
)
"""After `data`, which describes all splits, only `evaluation` looks at the test split. Under a
leakage limit, choosing attacks members too; the teacher's digest stands for them."""

DATA_STAGE = "data"
LOG = "run.log"
"""What the run has told, in words."""
GIVEN = "given.json"
"""The recipe of a run folder as it was given, before settings were derived."""
DEFAULT_SHADOWS = 16
"""Of an audit that was asked for without saying how many."""

STAGE_NAMES = (DATA_STAGE, *(stage.name for stage in STAGES))


def run(
    recipe: Recipe,
    out: Path | str,
    *,
    until: str | None = None,
    redo: str | None = None,
    reporter: Reporter | None = None,
) -> Result | None:
    """Runs the recipe in the folder `out`, going on where an earlier call stopped.

    Args:
        recipe: The run.
        out: The run folder; made if there is none.
        until: Last stage to run; unset: all, then the result and the report.
        redo: Stage to do anew, with all that depend on it.
        reporter: Told of the progress; unset: nobody is.

    Returns:
        The result, `None` if `until` stopped before the last stage.

    Raises:
        RecipeError: The recipe is wrong.
        DataError: The images are.
        RunError: The folder holds another run, is damaged, or cannot be written.
        Interrupted: A signal asked to stop; the same call goes on.
    """
    out = Path(out)
    for name in (until, redo):
        check_stage_name(name)
    splits = load_splits(recipe.data)
    with locked(out):
        if redo is not None:
            forget(out, redo)
        recipe = with_earlier_audit(recipe, out)
        prepared = prepare(recipe, splits, out, reporter or SilentReporter())
        if until == DATA_STAGE:
            return None
        for stage in stages_of(recipe):
            prepared.context.reporter.stage(stage.name)
            perform(out / stage.name, fingerprint(stage, prepared), partial(stage.work, prepared))
            if stage.name == until:
                return None
        write_sealed(out / RESULT, summarise(prepared, recipe, STAGE_NAMES))
        write_report(out)
    return read_result(out)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Returns the stages that the recipe asks for: all, the audit only if it has shadows."""
    audited = recipe.audit.shadows > 0
    return tuple(stage for stage in STAGES if audited or stage.name != "audit")


def audit(
    out: Path | str, overrides: Sequence[str] = (), *, reporter: Reporter | None = None
) -> Result | None:
    """Audits the run in the folder `out`, or goes on with its audit.

    Args:
        out: The run folder; its run is finished first if it is not.
        overrides: Settings such as "audit.shadows=32".
        reporter: Told of the progress; unset: nobody is.

    Raises:
        RunError: There is no run in the folder; and what `run` raises.
    """
    recipe = given_recipe(Path(out), overrides, {"audit": {"shadows": DEFAULT_SHADOWS}})
    return run(recipe, out, reporter=reporter)


def release(
    out: Path | str,
    bundle: Path | str,
    order: Order | None = None,
    *,
    reporter: Reporter | None = None,
) -> int:
    """Writes what may leave the building of the run in `out` to `bundle`; returns its files.

    Args:
        out: The run folder.
        bundle: A folder that does not exist yet.
        order: Number of images, generator or not, reason for an override.
        reporter: Told of the progress; unset: nobody is.

    Raises:
        RunError: The run is unfinished or damaged, its policy refuses the release, or the bundle
            cannot be written.
    """
    out = Path(out)
    recipe = given_recipe(out)
    splits = load_splits(recipe.data)
    with locked(out):
        prepared = prepare(recipe, splits, out, reporter or SilentReporter())
        for stage in stages_of(recipe):
            if not (out / stage.name / DONE).exists():
                raise RunError(
                    "the run is not finished",
                    where=out / stage.name,
                    next_step="finish it with: kr run RECIPE --out RUN",
                )
            check_done(out / stage.name, fingerprint(stage, prepared))
        result = parse_result(summarise(prepared, recipe, STAGE_NAMES))
        return bundles.release(prepared, result, Path(bundle), order or Order())


def with_earlier_audit(recipe: Recipe, out: Path) -> Recipe:
    """Returns the recipe with the audit that the run in `out` has had, if it names none itself."""
    if recipe.audit.shadows or not (out / "audit").exists():
        return recipe
    return recipe.model_copy(update={"audit": given_recipe(out).audit})


def given_recipe(
    out: Path, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> Recipe:
    """Returns the recipe of a run folder as it was given, changed by `overrides`.

    Raises:
        RunError: There is no run in the folder.
    """
    if not (out / GIVEN).exists():
        raise RunError(
            "there is no run in this folder", where=out / GIVEN, next_step="kr run RECIPE"
        )
    values = read_sealed(out / GIVEN, "write it again: kr run RECIPE --out RUN")
    for table, settings in (defaults or {}).items():
        values[table] = settings | values.get(table, {})
    for override in overrides:
        apply_override(values, override)
    return Recipe.from_dict(values)


def prepare(recipe: Recipe, splits: Splits, out: Path, reporter: Reporter) -> Run:
    """Looks at the set, derives the settings left open, and returns the run ready to work.

    Raises:
        RunError: The folder was made with other images or data settings.
    """
    fabric = make_fabric(recipe.compute)
    digests = splits.digests()
    settings = flattened("data", recipe.data.model_dump(mode="json"))
    perform(out / DATA_STAGE, settings | flattened("digest", digests), partial(describe, splits))
    seen = read_json(out / DATA_STAGE / DATA)
    reporter = Noted(reporter, out / LOG)
    for warning in seen["warnings"]:
        reporter.warn(warning)
    on_gpu = fabric.device.type != "cpu"
    completed = recipe.completed(facts(splits, seen["symmetries"], on_gpu=on_gpu))
    loggers = make_loggers(recipe.logging, out)
    compute = recipe.compute
    context = Context(fabric, recipe.seed, reporter, compute.devices, out, loggers, compute.compile)
    prepared = Run(out, completed, splits, digests, context)
    check_before_training(prepared)
    write_json(out / "recipe.json", completed.model_dump(mode="json"))
    write_sealed(out / GIVEN, recipe.model_dump(mode="json", exclude_unset=True))
    return prepared


def check_before_training(run: Run) -> None:
    """Finds now what would otherwise stop the run after hours of training.

    Raises:
        RecipeError: A network cannot be built, a knob is unknown, or a batch exceeds the set or
            cannot be shared equally.
    """
    new_classifier(run, "teacher")
    new_classifier(run, "student")
    for each in run.each_generator:
        new_generator(each)
    choosing.check_before_training(run)
    auditing.check_supported(run.recipe)
    sizes = {
        "teacher.training.batch_size": run.recipe.teacher.training.batch_size,
        "generator_training.batch_size": run.recipe.generator_training.batch_size,
    }
    student = {"student.training.batch_size": run.recipe.student.batch_size(len(run.members))}
    check_shares(run.context.devices, sizes | student)
    for key, size in sizes.items():
        if size > len(run.members):
            raise RecipeError(
                "there are fewer training images than a batch has",
                where=key,
                expected=f"at most {len(run.members)}",
                got=size,
                next_step="leave the key out, or add images",
            )


def describe(splits: Splits, folder: Path) -> None:
    """Writes the set as seen, and the flips it allows."""
    inspection = inspect(splits)
    counts = {each.name: each.class_counts for each in inspection.splits}
    write_json(
        folder / DATA,
        {
            "shape": inspection.shape,
            "classes": inspection.class_names,
            "counts": counts,
            "warnings": inspection.warnings,
            "symmetries": measured_symmetries(splits.train, splits.val),
        },
    )


def facts(splits: Splits, symmetries: Sequence[str], *, on_gpu: bool) -> Facts:
    """Returns what defaults are derived from; nothing of the test split."""
    return Facts(
        num_train=len(splits.train),
        num_val=len(splits.val),
        shape=splits.train.shape,
        num_classes=splits.train.num_classes,
        smallest_class=int(splits.train.class_counts().min()),
        symmetries=tuple(symmetries),
        on_gpu=on_gpu,
    )


def fingerprint(stage: Stage, run: Run) -> Fingerprint:
    """Returns all that the outputs of `stage` depend on, by dotted name."""
    settings = run.recipe.model_dump(mode="json")
    parts: dict[str, Any] = {
        "version": stage.version,
        "seed": run.recipe.seed,
        "precision": run.context.fabric._precision.precision,
    }
    for name in stage.settings:
        parts |= flattened(name, reduce(getitem, name.split("."), settings))
    for name in stage.splits:
        parts[f"digest.{name}"] = run.digests[name]
    for name in stage.inputs:
        parts[f"output of {name}"] = output_digest(run.folder / name)
    return parts


def forget(out: Path, first: str) -> None:
    """Deletes the stage `first` and all that depend on it: on `data`, all do."""
    gone = set(STAGE_NAMES) if first == DATA_STAGE else {first}
    for stage in STAGES:
        if gone & set(stage.inputs):
            gone.add(stage.name)
    for name in gone:
        shutil.rmtree(out / name, ignore_errors=True)


def check_stage_name(name: str | None) -> None:
    """Checks that `name` is a stage, or nothing.

    Raises:
        RunError: It is not.
    """
    if name is not None and name not in STAGE_NAMES:
        raise RunError(
            f"there is no stage '{name}'",
            expected=f"one of {', '.join(STAGE_NAMES)}",
            got=name,
            next_step=did_you_mean(name, STAGE_NAMES),
        )


def derive(recipe: Recipe) -> Recipe:
    """Returns the recipe with all settings that a run would derive from the set filled in."""
    splits = load_splits(recipe.data)
    symmetries = measured_symmetries(splits.train, splits.val)
    on_gpu = make_fabric(recipe.compute).device.type != "cpu"
    return recipe.completed(facts(splits, symmetries, on_gpu=on_gpu))
