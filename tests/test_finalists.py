"""Full students confirm what cheap ones chose: who competes, who wins, and whose student it is."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_end_to_end import write_recipe

import knowledge_recycling as kr
from knowledge_recycling import choosing
from knowledge_recycling.artefacts import Run
from knowledge_recycling.choosing import finalists_of
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.recycling.distillation import Lesson
from knowledge_recycling.stages import learn
from knowledge_recycling.training.classifier import DivergedError
from knowledge_recycling.training.loop import GiveUp, never, read_records

SHORT = [
    "teacher.training.images_seen=160",
    "generator_training.images_seen=160",
    "student.training.images_seen=320",
    "tuning.knobs=['latent_std', 'hard_weight']",
    "tuning.trials=4",
]
WEIGHTS = "weights.safetensors"


def rows_of(run: Path, table: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((run / table).read_text())
    return rows


def chosen(rows: list[dict[str, Any]]) -> int:
    (number,) = (i for i, row in enumerate(rows) if row["chosen"])
    return number


def check_winner(
    rows: list[dict[str, Any]], folders: dict[int, Path], favourite: int, cheap: int
) -> None:
    """Checks a table against the full students in `folders`; `cheap` is what cheap ones chose.

    Who is no better than the favourite at two snapshots running must have been given up there.
    """
    merits, losses = {}, {}
    standard = read_records(folders[favourite])
    for number, folder in folders.items():
        best = json.loads((folder / "student.json").read_text())["best"]
        records = read_records(folder)
        ahead = [
            ours["val_accuracy"] > theirs["val_accuracy"]
            or ours["val_robust_accuracy"] > theirs["val_robust_accuracy"]
            for ours, theirs in zip(records, standard, strict=False)
        ]
        if number != favourite:
            lost = [not (one or other) for one, other in pairwise(ahead)]
            assert not any(lost[:-1]), "it should have been given up earlier"
        if rows[number]["full_failure"] is not None:
            assert number != favourite
            assert rows[number]["full_cas"] is None
            assert f"after {records[-1]['images_seen']:.0f} images" in rows[number]["full_failure"]
            continue
        assert len(records) == len(standard)
        assert rows[number]["full_cas"] == best["val_accuracy"]
        assert rows[number]["full_robust_cas"] == best["val_robust_accuracy"]
        merits[number] = (best["val_accuracy"] + best["val_robust_accuracy"]) / 2
        losses[number] = best["val_loss"]
    assert favourite in merits
    assert cheap in folders
    winner = chosen(rows)
    assert winner == favourite or (
        merits[winner] > merits[favourite] and losses[winner] <= losses[favourite]
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs by their number of finalists."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(folder)
    for finalists in (1, 4):
        settings = [*SHORT, f"selection.finalists={finalists}"]
        kr.run(kr.Recipe.load(recipe, settings), folder / str(finalists))
    return {finalists: folder / str(finalists) for finalists in (1, 4)}


def test_the_best_full_student_decides_among_candidates(runs: dict[int, Path]) -> None:
    rows = rows_of(runs[4], "candidates/candidates.json")
    folders = {
        i: runs[4] / f"candidates/finalist-{row['name']}"
        for i, row in enumerate(rows)
        if row["failure"] is None
    }
    trusting = chosen(rows_of(runs[1], "candidates/candidates.json"))
    assert len(folders) > 1
    check_winner(rows, folders, favourite=len(rows) - 1, cheap=trusting)
    assert not list((runs[1] / "candidates").glob("finalist-*"))


def test_the_best_full_student_is_the_student(runs: dict[int, Path]) -> None:
    run = runs[4]
    rows = rows_of(run, "tuning/trials.json")
    candidates = rows_of(run, "candidates/candidates.json")
    defaults = run / f"candidates/finalist-{candidates[chosen(candidates)]['name']}"
    folders = {
        row["trial"]: run / f"tuning/finalist-{row['trial']:03d}" if row["trial"] else defaults
        for row in rows
        if row["failure"] is None
    }
    assert not (run / "tuning/finalist-000").exists(), "it would be trained twice"
    check_winner(rows, folders, favourite=0, cheap=0)
    won = (folders[chosen(rows)] / WEIGHTS).read_bytes()
    assert won == (run / "student" / WEIGHTS).read_bytes()
    assert "CAS %, full student" in (run / "report.html").read_text()


def test_a_finalist_is_the_student_that_a_run_without_finalists_trains(
    runs: dict[int, Path], tmp_path: Path
) -> None:
    settings = [*SHORT, "selection.finalists=1", "tuning.trials=1"]
    run = tmp_path / "run"
    kr.run(kr.Recipe.load(write_recipe(tmp_path), settings), run)
    rows = rows_of(run, "candidates/candidates.json")
    same = runs[4] / f"candidates/finalist-{rows[chosen(rows)]['name']}" / WEIGHTS
    assert same.read_bytes() == (run / "student" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("favourite_fails", [False, True])
def test_a_full_student_that_diverges_is_reported_and_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, favourite_fails: bool
) -> None:
    asked = iter(range(100))  # the favourite is the first

    def diverging(lesson: Lesson, run: Run, folder: Path, give_up: GiveUp = never) -> None:
        learn(lesson, run, folder, give_up)
        if (next(asked) == 0) is favourite_fails:
            (folder / "student.json").unlink()
            raise DivergedError("the training of the student diverged")

    monkeypatch.setattr(choosing, "learn", diverging)
    run = tmp_path / "run"
    kr.run(kr.Recipe.load(write_recipe(tmp_path), [*SHORT, "selection.finalists=4"]), run)
    rows = rows_of(run, "candidates/candidates.json")
    failed = {i for i, row in enumerate(rows) if "diverged" in str(row["full_failure"])}
    assert failed == ({len(rows) - 1} if favourite_fails else set(range(len(rows) - 1)))
    assert chosen(rows) not in failed
    assert "diverged" in (run / "report.html").read_text()


scored = st.builds(
    lambda cas, robust, failed: {
        "cas": None if failed else cas,
        "robust_cas": None if failed else robust,
        "failure": "given up" if failed else None,
    },
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
)


@given(
    st.lists(scored, min_size=1, max_size=8),
    st.integers(0, 7),
    st.integers(0, 7),
    st.integers(1, 9),
)
def test_favourite_and_chosen_compete_first(
    rows: list[dict[str, Any]], best: int, favourite: int, number: int
) -> None:
    best, favourite = best % len(rows), favourite % len(rows)
    rows[best] = {"cas": 0.5, "robust_cas": 0.5, "failure": None}
    trials = [{**row, "chosen": i == best} for i, row in enumerate(rows)]
    found = finalists_of(trials, number, favourite)
    usable = {i for i, row in enumerate(trials) if row["failure"] is None}
    must = {best} if number == 1 else {best, favourite} & usable
    assert set(found[: len(must)]) == must
    assert found[0] == (favourite if favourite in must else best)
    assert len(found) == len(set(found)) == min(len(must) + max(number - 2, 0), len(usable))
    assert set(found) <= usable
    others = [
        trials[i]["cas"] + trials[i]["robust_cas"] for i in found if i not in (best, favourite)
    ]
    assert others == sorted(others, reverse=True)
    left = [trials[i]["cas"] + trials[i]["robust_cas"] for i in usable - set(found)]
    assert not others or max(left, default=0) <= others[-1]


def test_several_generators_have_no_finalists(tmp_path: Path) -> None:
    settings = [*SHORT, "selection.finalists=3", "further_generators.b={width=16}"]
    with pytest.raises(RecipeError) as caught:
        kr.run(kr.Recipe.load(write_recipe(tmp_path), settings), tmp_path / "run")
    assert caught.value.where == "selection.finalists"
    assert caught.value.got == 3
