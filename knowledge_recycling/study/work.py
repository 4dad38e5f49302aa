"""The work of a study: a run for each set and seed, one more student for each row that needs it.

Students are parts named after all they depend on, so that rows which come to the same share one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from knowledge_recycling import pipeline, stages
from knowledge_recycling.artefacts import (
    DATA,
    Run,
    candidate_files,
    chosen_candidate,
    chosen_knobs,
    generator_knobs,
    lesson_of,
    load_ensemble,
    load_source,
    new_classifier,
)
from knowledge_recycling.compute import make_fabric
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.errors import KRError, RunError
from knowledge_recycling.evaluation.utility import measure_utility
from knowledge_recycling.fanout import fan_out, workers_for
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.progress import Reporter, SilentReporter
from knowledge_recycling.randomness import numpy_rng
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.recycling.distillation import KNOBS, SETTINGS, StudentConfig, with_knobs
from knowledge_recycling.recycling.scoring import defect
from knowledge_recycling.recycling.synthesis import mixed
from knowledge_recycling.rundir import (
    DONE,
    Fingerprint,
    check_done,
    locked,
    output_digest,
    perform,
    record_of,
)
from knowledge_recycling.storage import read_json, read_weights, value_digest, write_json
from knowledge_recycling.study.plan import OF_STUDENT, Cell, Row, Study
from knowledge_recycling.summary import keep_rows, rows_of
from knowledge_recycling.training.classifier import WEIGHTS

METRICS = ("accuracy", "balanced_accuracy", "auroc", "ece")
UTILITY = "utility.json"

Outcome = dict[str, Any]
"""Measures of one cell, or its failure; the columns of `cells` in table.json."""


@dataclass(frozen=True)
class Pupil:
    """A student to be trained: its settings and the images it learns."""

    config: StudentConfig
    draws: tuple[tuple[Path, dict[str, float]], ...]
    """Candidate and all its knobs, for each generator."""

    def fingerprint(self, run: Run) -> Fingerprint:
        """Returns all that it depends on."""
        return {
            "student": self.config.model_dump(mode="json"),
            "draws": [[path.stem, knobs] for path, knobs in self.draws],
            "seed": run.recipe.seed,
            "precision": run.context.fabric._precision.precision,
            "digests": {name: run.digests[name] for name in ("val", "test")},
            "inputs": [
                output_digest(run.folder / name) for name in (*pipeline.LABELLERS, "generator")
            ],
        }


def perform_study(
    study: Study, out: Path, reporter: Reporter, tell: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Does all that is left of a study in `out`; returns the outcomes of all cells.

    Args:
        study: The study.
        out: Its folder.
        reporter: Told of the progress.
        tell: Given the outcomes so far whenever a set is done with a seed.

    Raises:
        RunError: Another process works on the study, or its folder cannot be written.
        Interrupted: A signal asked to stop; the same call goes on.
    """
    by_place: dict[str, list[Cell]] = {}
    for cell in study.cells():
        by_place.setdefault(cell.folder, []).append(cell)
    places = list(by_place.values())
    outcomes: dict[int, list[Outcome]] = {}
    device = make_fabric(study.compute).device
    with locked(out):
        workers = workers_for(study.compute, len(places), device, short=True)
        told = reporter if workers.backend == "here" else SilentReporter()
        work = partial(outcomes_of_place, study, out, told)
        for done in fan_out(work, places, workers, out):
            cell = places[done.number][0]
            reporter.stage(f"{cell.set}, seed {cell.seed} is done")
            outcomes[done.number] = done.outcome
            tell(_in_order(outcomes))
    return _in_order(outcomes)


def _in_order(outcomes: dict[int, list[Outcome]]) -> list[Outcome]:
    return [each for number in sorted(outcomes) for each in outcomes[number]]


def outcomes_of_place(
    study: Study, out: Path, reporter: Reporter, cells: list[Cell]
) -> list[Outcome]:
    """Returns the outcomes of all cells of one set and seed, which share runs and students."""
    outcomes = []
    for folder in sorted({cell.run_folder for cell in cells}):  # the plain run comes first
        of_run = [cell for cell in cells if cell.run_folder == folder]
        outcomes += outcomes_of(study, of_run, out, reporter)
    return outcomes


def outcomes_of(study: Study, cells: list[Cell], out: Path, reporter: Reporter) -> list[Outcome]:
    """Returns the outcomes of the cells of one run; a failure is one, and stops no other cell.

    The students measured become rows of the run's `result.json` and report.
    """
    outcomes, rows = [], []
    run: Run | KRError
    try:
        run = finished_run(study, cells[0], out, reporter)
    except KRError as error:
        run = error
    for cell in cells:
        try:
            if isinstance(run, KRError):
                raise run
            reporter.stage(f"{cell.set}, seed {cell.seed}: {cell.row.label}")
            utility, more = measured(study, cell, run)
            outcome = compared(utility, evaluated(run, "teacher")) | more
            if cell.row.model == "student":
                rows.append({"name": cell.row.label} | utility)
        except KRError as error:
            outcome = {"failure": error.what, "error": str(error)}
        outcomes.append(about(cell) | outcome)
        write_json(cell_file(study, cell, out), outcomes[-1])
    if not isinstance(run, KRError):
        show_rows(study, cells[0], run, rows)
    return outcomes


def show_rows(study: Study, cell: Cell, run: Run, rows: list[Outcome]) -> None:
    """Writes the result and the report of a finished run anew, if they lack `rows` of its study."""
    if rows_of(run.folder) == rows:
        return
    keep_rows(run.folder, rows)
    pipeline.run(study.recipe(cell, cell.row.run_settings), run.folder)


def about(cell: Cell) -> Outcome:
    """Returns which cell an outcome is of."""
    return {
        "set": cell.set,
        "seed": cell.seed,
        "row": cell.row.name,
        "test_selected": cell.row.test_selected,
    }


def cell_file(study: Study, cell: Cell, out: Path) -> Path:
    """Returns where the outcome of a cell is."""
    return out / cell.folder / "cells" / f"{study.digest(cell)[:16]}.json"


def state_of(study: Study, cell: Cell, out: Path) -> str:
    """Returns `done`, `failed` or `to do`."""
    path = cell_file(study, cell, out)
    if not path.exists():
        return "to do"
    return "failed" if read_json(path).get("failure") else "done"


class Unheard(SilentReporter):
    """Warns of nothing: the run itself has done so."""

    def warn(self, message: str) -> None:
        """Ignores the sentence."""


def finished_run(study: Study, cell: Cell, out: Path, reporter: Reporter) -> Run:
    """Returns the cell's run, finished; stages that the plain run has made alike are copied."""
    folder, plain = out / cell.run_folder, out / cell.folder / "run"
    recipe = study.recipe(cell, cell.row.run_settings)
    reporter.stage(f"{cell.set}, seed {cell.seed}: {folder.name}")
    splits = load_splits(recipe.data)
    with locked(folder):
        run = pipeline.prepare(recipe, splits, folder, Unheard())
        if folder != plain:
            adopt(run, plain)
    pipeline.run(recipe, folder, reporter=reporter)
    return replace(run, context=replace(run.context, reporter=reporter))


def adopt(run: Run, plain: Path) -> None:
    """Copies to `run` the first stages of the run in `plain` that have the same fingerprint."""
    for stage in pipeline.STAGES:
        ours, theirs = run.folder / stage.name, plain / stage.name
        if (ours / DONE).exists():
            continue
        if ours.exists() or not (theirs / DONE).exists():
            return
        if any(not (run.folder / name / DONE).exists() for name in stage.inputs):
            return
        wanted = json.loads(json.dumps(pipeline.fingerprint(stage, run)))
        if (record_of(theirs) or {})["fingerprint"] == wanted:
            check_done(theirs)
            beside = ours.with_name(f".{ours.name}.part")
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(theirs, beside)
            beside.rename(ours)


def measured(study: Study, cell: Cell, run: Run) -> tuple[Outcome, Outcome]:
    """Returns the utility by split of a cell's classifier, and what else there is to tell.

    Its student is trained if it is not.
    """
    if cell.row.model == "teacher":
        return evaluated(run, "teacher"), {}
    recipe = completed(study.recipe(cell, cell.row.settings), run)
    if not cell.row.test_selected:
        return utility_of(run, pupil_of(run, recipe, cell.row)), {}
    tried, failure = {}, None
    for position, path in enumerate(candidate_files(run)):
        try:
            tried[path.stem] = utility_of(run, pupil_of(run, recipe, cell.row, position))
        except RunError as error:  # of this candidate: another is picked
            failure = error
    if not tried:
        raise failure or RunError("the run has no candidates", where=run.folder)
    accuracy = {name: each["test"]["accuracy"]["value"] for name, each in tried.items()}
    picked = max(accuracy, key=lambda name: accuracy[name])
    return tried[picked], {"test_accuracy_of_candidates": accuracy}


def evaluated(run: Run, who: Literal["teacher", "student"]) -> Outcome:
    """Returns the utility by split of the run's own teacher or student."""
    utility: Outcome = read_json(run.folder / "evaluation/evaluation.json")[who]
    return utility


def compared(utility: Outcome, teacher: Outcome) -> Outcome:
    """Returns a classifier's measures by split, and how far it is from the teacher on test."""
    by_split = {
        split: {name: utility[split][name]["value"] for name in METRICS}
        for split in ("test", "val")
    }
    gaps = {
        f"{name}_pp": 100 * (by_split["test"][name] - teacher["test"][name]["value"])
        for name in METRICS
    }
    return {**by_split, "gap": gaps, "failure": None}


def completed(recipe: Recipe, run: Run) -> Recipe:
    """Returns the recipe with its derived settings, as the run would derive them."""
    seen = read_json(run.folder / "data" / DATA)
    on_gpu = run.context.fabric.device.type != "cpu"
    return recipe.completed(pipeline.facts(run.splits, seen["symmetries"], on_gpu=on_gpu))


def pupil_of(run: Run, recipe: Recipe, row: Row, position: int | None = None) -> Pupil:
    """Returns the student of a row; `position` picks the candidates instead of the row."""
    draws = []
    for each in run.each_generator:
        files = candidate_files(each)
        kept = chosen_candidate(each) if row.candidate == "chosen" else files[-1]
        defaults = {name: knob.default for name, knob in generator_knobs(each).items()}
        turned = own_knobs(chosen_knobs(each), defaults) if row.knobs == "chosen" else {}
        draws.append((kept if position is None else files[position], defaults | turned))
    config = recipe.student
    if row.knobs == "chosen":
        given = tuple(each.partition("=")[0].strip() for each in row.settings)
        knobs = own_knobs(chosen_knobs(run), KNOBS)
        free = {
            name: knobs[name] for name in knobs if not _sets(given, OF_STUDENT + SETTINGS[name])
        }
        config = with_knobs(config, free)
    return Pupil(config, tuple(draws))


def _sets(given: tuple[str, ...], key: str) -> bool:
    return any(each == key or each.startswith(f"{key}.") for each in given)


def own_knobs(knobs: Knobs, names: Any) -> dict[str, float]:
    """Returns those of `knobs` that are among `names`."""
    return {name: value for name, value in knobs.items() if name in names}


def utility_of(run: Run, pupil: Pupil) -> Outcome:
    """Returns the utility of a student by split, from the run itself or from its own part."""
    wanted = pupil.fingerprint(run)
    if wanted == pupil_of(run, run.recipe, Row(name="the run's own")).fingerprint(run):
        return evaluated(run, "student")
    folder = run.folder.with_name(f"{run.folder.name}-students") / value_digest(wanted)[:16]
    seen = replace(run, recipe=run.recipe.model_copy(update={"student": pupil.config}))
    perform(folder, wanted, lambda folder: train_pupil(seen, pupil, folder))
    return dict(read_json(folder / UTILITY))


def train_pupil(run: Run, pupil: Pupil, folder: Path) -> None:
    """Trains the student as the stage `student` would, and measures it as `evaluation` would."""
    teachers = load_ensemble(run)
    sources = [
        load_source(each, teachers, path, knobs)
        for each, (path, knobs) in zip(run.each_generator, pupil.draws, strict=True)
    ]
    for source, (path, _) in zip(sources, pupil.draws, strict=True):
        fault = defect(source, run.context)
        if fault is not None:
            raise RunError(f"a candidate draws {fault}", where=path)
    lesson = lesson_of(run, teachers, mixed(sources), config=pupil.config, name="student")
    stages.learn(lesson, run, folder)
    student = new_classifier(run, "student")
    read_weights(folder / WEIGHTS, student)
    utility = {}
    for split, images in (("test", run.splits.test), ("val", run.val)):
        chances = stages.probabilities(run, student, images)
        random = numpy_rng(run.context.seed, "evaluation", "student")
        resamples = run.recipe.evaluation.resamples
        utility[split] = asdict(measure_utility(chances, images.labels, random, resamples))
    write_json(folder / UTILITY, utility)
