"""Full students confirm what cheap ones chose: who competes, who wins, and whose student it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_end_to_end import write_recipe

import knowledge_recycling as kr
from knowledge_recycling.choosing import finalists_of
from knowledge_recycling.errors import RecipeError

SHORT = [
    "teacher.training.images_seen=160",
    "generator_training.images_seen=160",
    "student.training.images_seen=320",
    "tuning.knobs=['latent_std', 'hard_weight']",
    "tuning.trials=4",
]
WEIGHTS = "weights.safetensors"


def trials_of(run: Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((run / "tuning/trials.json").read_text())
    return trials


def chosen(run: Path) -> int:
    (number,) = (row["trial"] for row in trials_of(run) if row["chosen"])
    return int(number)


def test_the_best_full_student_is_the_student(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for finalists in (1, 4):
        settings = [*SHORT, f"selection.finalists={finalists}"]
        kr.run(kr.Recipe.load(recipe, settings), tmp_path / str(finalists))
    trusting, run = tmp_path / "1", tmp_path / "4"
    favourite = chosen(trusting)
    merits, losses = {}, {}
    for row in trials_of(run):
        if row["failure"] is not None:
            continue
        folder = run / f"tuning/finalist-{row['trial']:03d}"
        best = json.loads((folder / "student.json").read_text())["best"]
        assert row["full_cas"] == best["val_accuracy"]
        assert row["full_robust_cas"] == best["val_robust_accuracy"]
        merits[row["trial"]] = (best["val_accuracy"] + best["val_robust_accuracy"]) / 2
        losses[row["trial"]] = best["val_loss"]
    assert {favourite, 0} <= merits.keys()
    winner = chosen(run)
    assert winner == 0 or (merits[winner] > merits[0] and losses[winner] <= losses[0])
    same = run / f"tuning/finalist-{favourite:03d}" / WEIGHTS
    assert same.read_bytes() == (trusting / "student" / WEIGHTS).read_bytes()
    won = run / f"tuning/finalist-{winner:03d}" / WEIGHTS
    assert won.read_bytes() == (run / "student" / WEIGHTS).read_bytes()
    assert "CAS %, full student" in (run / "report.html").read_text()


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


@given(st.lists(scored, min_size=1, max_size=8), st.integers(0, 7), st.integers(1, 9))
def test_chosen_and_defaults_compete_first(
    rows: list[dict[str, Any]], best: int, number: int
) -> None:
    best %= len(rows)
    rows[best] = {"cas": 0.5, "robust_cas": 0.5, "failure": None}
    trials = [{**row, "chosen": i == best} for i, row in enumerate(rows)]
    found = finalists_of(trials, number)
    usable = {i for i, row in enumerate(trials) if row["failure"] is None}
    must = {best} if number == 1 else {best, 0} & usable
    assert set(found[: len(must)]) == must
    assert found[0] == min(must)  # the defaults if they compete
    assert len(found) == len(set(found)) == min(len(must) + max(number - 2, 0), len(usable))
    assert set(found) <= usable
    others = [trials[i]["cas"] + trials[i]["robust_cas"] for i in found if i not in (best, 0)]
    assert others == sorted(others, reverse=True)
    left = [trials[i]["cas"] + trials[i]["robust_cas"] for i in usable - set(found)]
    assert not others or max(left, default=0) <= others[-1]


def test_several_generators_have_no_finalists(tmp_path: Path) -> None:
    settings = [*SHORT, "selection.finalists=3", "further_generators.b={width=16}"]
    with pytest.raises(RecipeError) as caught:
        kr.run(kr.Recipe.load(write_recipe(tmp_path), settings), tmp_path / "run")
    assert caught.value.where == "selection.finalists"
    assert caught.value.got == 3
