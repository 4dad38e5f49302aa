"""Parts done last first, as workers may: candidates, trials and studies come out as in order.

The workers are a loop in this process; tests of real ones are in `core/test_clusters.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_end_to_end import stable, weights, write_recipe

import knowledge_recycling as kr
from knowledge_recycling import fanout
from knowledge_recycling.clusters import Numbered, Task, Workers
from knowledge_recycling.errors import RunError
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.study import work
from knowledge_recycling.study.plan import Row, Study

SHORT = [
    "teacher.training.images_seen=160",
    "generator_training.images_seen=160",
    "generator_training.candidates=3",
    "student.training.images_seen=96",
    "further_generators.b={width=16}",
    "tuning.knobs=['latent_std', 'guidance']",
    "tuning.trials=5",
]


@pytest.fixture
def shared_out(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """Replaces joblib by a loop from the last part to the first; lists parts and threads."""
    seen: list[tuple[int, int | None]] = []

    def backwards(task: Task, parts: Sequence[Numbered], workers: Workers) -> Iterator[Any]:
        seen.append((len(parts), workers.threads))
        return (task(each) for each in reversed(parts))

    monkeypatch.setitem(fanout.BACKENDS, "loky", backwards)
    return seen


def table(path: Path) -> Any:
    return [{**row, "images_per_second": None} for row in json.loads(path.read_text())]


def test_candidates_and_trials_do_not_depend_on_who_does_them_when(
    shared_out: list[tuple[int, int | None]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path)
    runs = {"here": SHORT, "shared": [*SHORT, "compute.workers=3"]}
    for name, settings in runs.items():
        kr.run(kr.Recipe.load(recipe, settings), tmp_path / name)
    further_teachers, candidates_of_each = [(2, 1)], [(3, 1)] * 2
    assert shared_out[:3] == further_teachers + candidates_of_each
    assert shared_out[3][0] == 2, "planned trials but the first, whose score is known"
    here, shared = (tmp_path / name for name in runs)
    assert weights(shared) == weights(here)
    assert stable(shared) == stable(here)
    for part in ("", "generator-b/"):
        for name in (f"candidates/{part}candidates.json", f"tuning/{part}trials.json"):
            assert table(shared / name) == table(here / name)


def test_a_study_has_the_same_cells_in_the_same_order(
    shared_out: list[tuple[int, int | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = {name: {"value": 0.5} for name in work.METRICS}
    utility = {"test": half, "val": half}

    def measured(study: Study, cell: Any, run: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if cell.seed == 1:
            raise RunError("broken")
        return utility, {}

    monkeypatch.setattr(work, "finished_run", lambda study, cell, out, reporter: cell)
    monkeypatch.setattr(work, "measured", measured)
    monkeypatch.setattr(work, "evaluated", lambda run, who: utility)
    monkeypatch.setattr(work, "show_rows", lambda study, cell, run, rows: None)
    found = {}
    for name, compute in (("here", {}), ("shared", {"workers": 3, "threads": 3})):
        study = Study(
            sets={"s": {"data": {"kind": "digits"}}},
            seeds=(0, 1, 2),
            rows=(Row(name="a"), Row(name="b", settings=("generator.width=16",))),
            compute=compute,  # type: ignore[arg-type]
        )
        told: list[list[int]] = []
        found[name] = work.perform_study(
            study,
            tmp_path / name,
            SilentReporter(),
            lambda outcomes, told=told: told.append([each["seed"] for each in outcomes]),
        )
    assert shared_out == [(3, 1)]
    assert told == [[2, 2], [1, 1, 2, 2], [0, 0, 1, 1, 2, 2]], "in order whenever a seed is done"
    assert found["shared"] == found["here"]
    assert [each["failure"] for each in found["here"]] == [None, None, *["broken"] * 2, None, None]
