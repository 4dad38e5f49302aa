"""Choosing: Checkpoint Optimisation and Tuning, each by what cheap students learn.

Both are stages like those in `stages.py`; all they look at is the validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from knowledge_recycling.artefacts import (
    STUDENT,
    Run,
    candidate_files,
    candidate_finalist,
    chosen_candidate,
    finalist_folder,
    known_knobs,
    lesson_of,
    load_ensemble,
    load_source,
)
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.fanout import in_order, workers_for
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.recycling.distillation import (
    Lesson,
    StudentConfig,
    check_choices,
    with_knobs,
)
from knowledge_recycling.recycling.scoring import (
    Score,
    bar_of,
    below,
    best_of,
    cheap,
    given_up,
    outdone,
    read_score,
    score,
    score_of,
)
from knowledge_recycling.recycling.tuning import Space, chosen_space, tune
from knowledge_recycling.rundir import Fingerprint, flattened, perform
from knowledge_recycling.stages import attacked_members, for_each_generator, learn
from knowledge_recycling.storage import read_json, write_json
from knowledge_recycling.together import together
from knowledge_recycling.training.classifier import DivergedError
from knowledge_recycling.training.generator import images_of
from knowledge_recycling.training.loop import GiveUp, never, read_records

MEASURED = ("cas", "robust_cas", "failure")
"""What a table says of full students, in columns of its own."""


def check_before_training(run: Run) -> None:
    """Finds now what would otherwise stop the choosing after hours of training.

    Raises:
        RecipeError: A knob is unknown or a value not allowed, or there are finalists and several
            generators.
    """
    known = {name: knob for each in run.of_further for name, knob in known_knobs(each).items()}
    space = chosen_space(run.recipe.tuning, known | known_knobs(run))
    check_choices(run.recipe.student, space)
    if run.recipe.further_generators and run.recipe.selection.finalists > 2:
        raise RecipeError(
            "the knobs of several generators are tuned apart, so no student can confirm them",
            where="selection.finalists",
            expected="at most 2, where there are further_generators",
            got=run.recipe.selection.finalists,
            next_step="leave the key out, or use one generator",
        )


def optimise_checkpoint(run: Run, folder: Path) -> None:
    """Checkpoint Optimisation of each generator."""
    for_each_generator(run, folder, optimise_one)


def optimise_one(run: Run, folder: Path) -> None:
    """Scores each candidate of one generator with default knobs and chooses the best."""
    candidates = candidate_files(run)
    last = len(candidates) - 1
    questions = [Question(path, {}, folder / path.stem, {"part": path.stem}) for path in candidates]
    scores = scores_of(run, questions, folder)
    judged = judge(run, scores, favourite=last, where=folder)
    table = [
        {"name": path.stem, "images_seen": images_of(path), **each}
        for path, each in zip(candidates, judged, strict=True)
    ]

    def train_full(number: int, give_up: GiveUp) -> Path:
        path = candidates[number]
        return full_student(run, path, {}, candidate_finalist(run, path), give_up)

    write_json(folder / "candidates.json", confirmed(run, table, last, train_full, folder))


def judge(run: Run, scores: Sequence[Score], favourite: int, where: Path) -> list[dict[str, Any]]:
    """Returns the scores as rows that say which is chosen, and which without a leakage limit."""
    limit = run.recipe.tuning.leakage_limit
    best = best_of(scores, favourite, where, limit)
    free = best if limit is None else best_of(scores, favourite, where)
    leakage = scores[best].leakage
    if limit is not None and (leakage is None or leakage > limit):
        run.context.reporter.warn(
            f"nothing in '{where.name}' leaks as little as tuning.leakage_limit = {limit:g}; "
            f"what leaks least is taken, with {leakage:.3f}"
        )
    return [
        {"chosen": i == best, "chosen_without_limit": i == free, **asdict(each)}
        for i, each in enumerate(scores)
    ]


def tune_knobs(run: Run, folder: Path) -> None:
    """Tuning of each generator."""
    for_each_generator(run, folder, tune_one)


def tune_one(run: Run, folder: Path) -> None:
    """Searches the knobs with which the chosen candidate of one generator teaches best."""
    candidate = chosen_candidate(run)
    scored = run.folder / "candidates" / run.part / candidate.stem
    limited = run.recipe.tuning.leakage_limit is not None  # what teaches less may leak less
    bar = bar_of(read_records(scored), len(run.val))
    give_up = never if limited else partial(below, bar=bar)

    def try_knobs(by_number: Mapping[int, Knobs]) -> dict[int, Score]:
        known = {
            number: read_score(scored)
            for number, knobs in by_number.items()
            if number == 0 and "period" not in knobs  # Checkpoint Optimisation has scored them
        }
        left = [number for number in by_number if number not in known]
        questions = [
            Question(
                candidate,
                by_number[number],
                folder / f"trial-{number:03d}",
                {"part": number, **flattened("knobs", dict(by_number[number]))},
                never if number == 0 else give_up,
            )
            for number in left
        ]
        return known | dict(zip(left, scores_of(run, questions, folder), strict=True))

    trials = tune(run.recipe.tuning, tuned_space(run), try_knobs, run.context.seed)
    judged = judge(run, [trial.score for trial in trials], favourite=0, where=folder)
    table = [
        {"trial": i, "knobs": trial.knobs, **each}
        for i, (trial, each) in enumerate(zip(trials, judged, strict=True))
    ]

    def train_full(number: int, give_up: GiveUp) -> Path:
        place = finalist_folder(run, number)
        if place.parent != folder:  # Checkpoint Optimisation has trained it
            return place
        return full_student(run, candidate, trials[number].knobs, place, give_up)

    write_json(folder / "trials.json", confirmed(run, table, 0, train_full, folder))


def confirmed(
    run: Run,
    rows: list[dict[str, Any]],
    favourite: int,
    train_full: Callable[[int, GiveUp], Path],
    folder: Path,
) -> list[dict[str, Any]]:
    """Returns a table of candidates or trials with the scores of full students, which then decide.

    The favourite must be clearly beaten here too, and all along (`outdone`): a lead of cheap
    students may be one of speed. Under a leakage limit all train to the end: what teaches less may
    leak less.

    Args:
        run: The run.
        rows: The table, by cheap students.
        favourite: Number of the row that is hard to beat.
        train_full: Trains the full student of a row, if it is not yet, unless it is to be given up;
            returns its folder.
        folder: Of the stage.
    """
    finalists = finalists_of(rows, run.recipe.selection.finalists, favourite)
    if len(finalists) == 1 or run.recipe.further_generators:
        return rows
    first, *rivals = finalists
    standard = train_full(first, never)
    scores = [full_score(run, standard, never)]
    give_up: GiveUp = never
    if scores[0].failure is None and run.recipe.tuning.leakage_limit is None:
        records = read_records(standard)
        give_up = partial(outdone, favourite=records, num_val=len(run.val), where=folder)
    scores += [full_score(run, train_full(number, give_up), give_up) for number in rivals]
    judged = dict(zip(finalists, judge(run, scores, favourite=0, where=folder), strict=True))
    unchosen = {"chosen": False, "chosen_without_limit": False}
    return [
        row
        | unchosen
        | {f"full_{name}": judged[i][name] for name in MEASURED if i in judged}
        | {name: judged[i][name] for name in unchosen if i in judged}
        for i, row in enumerate(rows)
    ]


def finalists_of(rows: Sequence[Mapping[str, Any]], number: int, favourite: int) -> list[int]:
    """Returns which rows compete: the favourite, the chosen one, then by merit."""
    chosen = next(i for i, row in enumerate(rows) if row["chosen"])
    if number == 1:
        return [chosen]
    usable = [i for i, row in enumerate(rows) if row["failure"] is None]
    first = [i for i in dict.fromkeys([favourite, chosen]) if i in usable]
    others = [i for i in usable if i not in first]
    others.sort(key=lambda i: -(rows[i]["cas"] + rows[i]["robust_cas"]))
    return [*first, *others[: number - 2]]


def full_score(run: Run, folder: Path, give_up: GiveUp) -> Score:
    """Returns the score of the full student in `folder`, which may have failed or been given up."""
    about, records = read_json(folder / STUDENT), read_records(folder)
    if "failure" in about:
        return Score(failure=about["failure"])
    if give_up(records):
        return given_up(records)
    return replace(score_of(about["best"], len(run.val)), leakage=about.get("leakage"))


def full_student(run: Run, candidate: Path, knobs: Knobs, folder: Path, give_up: GiveUp) -> Path:
    """Returns `folder`, where the full student of a candidate with some knobs is trained."""
    work = partial(together, partial(learn_finalist, candidate, knobs, give_up), run)
    perform(folder, {"part": folder.name, **flattened("knobs", dict(knobs))}, work)
    return folder


def learn_finalist(candidate: Path, knobs: Knobs, give_up: GiveUp, run: Run, folder: Path) -> None:
    """Trains the full student with some knobs; one that diverges fails, and the run goes on."""
    config = with_knobs(run.recipe.student, knobs)
    try:
        learn(_lesson(run, candidate, knobs, config, "student"), run, folder, give_up)
    except DivergedError as error:
        write_json(folder / STUDENT, {"failure": error.what})


@dataclass(frozen=True)
class Question:
    """What a cheap student is to tell: how well a candidate teaches with some knobs."""

    candidate: Path
    knobs: Knobs
    folder: Path
    """Of the part that answers it."""
    fingerprint: Fingerprint
    give_up: GiveUp = never


def scores_of(run: Run, questions: Sequence[Question], folder: Path) -> list[Score]:
    """Returns the score for each question; each is a part of the stage in `folder`."""
    device = run.context.fabric.device
    workers = workers_for(run.recipe.compute, len(questions), device, short=True)
    return in_order(partial(answered, run.for_workers(workers)), questions, workers, folder)


def answered(run: Run, question: Question) -> Score:
    """Returns the score that answers the question, from its part if that is done."""
    lesson = cheap_lesson(run, question.candidate, question.knobs)
    return score(
        lesson,
        question.fingerprint,
        question.folder,
        run.context,
        members=attacked_members(run),
        give_up=question.give_up,
    )


def tuned_space(run: Run) -> Space:
    """Returns the knobs to tune of one generator: of the recipe's, those that it has."""
    config, known = run.recipe.tuning, known_knobs(run)
    if run.recipe.further_generators:  # another generator may have the others
        choices = {name: values for name, values in config.choices.items() if name in known}
        knobs = tuple(name for name in config.knobs if name in known)
        config = config.model_copy(update={"knobs": knobs, "choices": choices})
    return chosen_space(config, known)


def cheap_lesson(run: Run, candidate: Path, knobs: Knobs) -> Lesson:
    """Returns the lesson of the cheap student that scores a candidate with some knobs."""
    config = cheap(run.recipe.student, run.recipe.selection, knobs)
    return _lesson(run, candidate, knobs, config, "cheap student")


def _lesson(run: Run, candidate: Path, knobs: Knobs, config: StudentConfig, name: str) -> Lesson:
    teachers = load_ensemble(run)
    source = load_source(run, teachers, candidate, knobs)
    return lesson_of(run, teachers, source, config=config, name=name)
