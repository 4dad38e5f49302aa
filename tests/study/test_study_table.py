"""Tables against a slow recomputation from the cells, intervals against SciPy's."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from knowledge_recycling.study.plan import Row, Study
from knowledge_recycling.study.table import (
    ALL_SETS,
    COLUMNS,
    NOTE,
    Mean,
    as_csv,
    draw,
    lines_of,
    markdown,
    over_seeds,
    write_table,
)

METRICS = ("accuracy", "balanced_accuracy", "auroc", "ece")
ROWS = (
    Row(name="real", model="teacher"),
    Row(name="a|b"),
    Row(name="t", candidate="test-selected"),
)
STUDY = Study(
    sets={"one": {"data": {"kind": "digits"}}, "two": {"data": {"kind": "digits"}}},
    seeds=(0, 1, 2),
    rows=ROWS,
)


def outcome(name: str, seed: int, row: Row, random: np.random.Generator) -> dict[str, Any]:
    parts: dict[str, Any] = {
        part: {metric: float(random.random()) for metric in METRICS} for part in ("test", "val")
    }
    gap = {f"{metric}_pp": float(random.normal()) for metric in METRICS}
    about = {"set": name, "seed": seed, "row": row.name, "test_selected": row.test_selected}
    return {**about, **parts, "gap": gap, "failure": None}


@pytest.fixture
def outcomes() -> list[dict[str, Any]]:
    """All cells but one of set two, which failed, and one not done yet."""
    random = np.random.default_rng(0)
    cells = [
        outcome(name, seed, row, random)
        for name in STUDY.sets
        for seed in STUDY.seeds
        for row in STUDY.rows
    ]
    failed = next(c for c in cells if (c["set"], c["seed"], c["row"]) == ("two", 1, "a|b"))
    about = {key: failed[key] for key in ("set", "seed", "row", "test_selected")}
    cells[cells.index(failed)] = about | {"failure": "broken | badly"}
    return [c for c in cells if (c["set"], c["seed"], c["row"]) != ("two", 2, "t")]


@pytest.mark.parametrize("size", [2, 3, 10])
def test_the_interval_is_students(size: int) -> None:
    values = list(np.random.default_rng(size).normal(3, 2, size))
    measured = over_seeds(values)
    low, high = stats.t.interval(0.95, size - 1, np.mean(values), stats.sem(values))
    assert measured.mean == pytest.approx(statistics.fmean(values))
    assert (measured.low, measured.high) == (pytest.approx(low), pytest.approx(high))
    assert measured.n == size


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert over_seeds([2.5]) == Mean(2.5, None, None, 1)
    assert over_seeds([]) == Mean(None, None, None, 0)


def by_hand(cells: list[dict[str, Any]], sets: list[str], row: str, column: str) -> list[float]:
    part, name, factor = COLUMNS[column]
    values = []
    for seed in STUDY.seeds:
        of_seed = [c for c in cells if c["seed"] == seed and c["row"] == row and c["set"] in sets]
        if len(of_seed) == len(sets) and not any(c["failure"] for c in of_seed):
            values.append(statistics.fmean(factor * c[part][name] for c in of_seed))
    return values


def test_lines_are_the_means_over_whole_seeds(outcomes: list[dict[str, Any]]) -> None:
    lines = lines_of(STUDY, outcomes)
    assert [line.set for line in lines] == ["one"] * 3 + ["two"] * 3 + [ALL_SETS] * 3
    for line, row in zip(lines, [*ROWS] * 3, strict=True):
        sets = ["one", "two"] if line.set == ALL_SETS else [line.set]
        for column, measured in line.measures.items():
            values = by_hand(outcomes, sets, row.name, column)
            assert measured.n == len(values)
            assert measured.mean == pytest.approx(statistics.fmean(values))
    counts = {(line.set, line.row): line.measures["gap, pp"].n for line in lines}
    assert counts[("two", "a|b")] == counts[(ALL_SETS, "a|b")] == 2
    assert counts[("two", "t [test-selected]")] == counts[(ALL_SETS, "t [test-selected]")] == 2
    assert sum(counts.values()) == 9 * 3 - 4
    failures = {(line.set, line.row): line.failures for line in lines if line.failures}
    assert list(failures) == [("two", "a|b"), (ALL_SETS, "a|b")]
    assert all(each == {1: "broken | badly"} for each in failures.values())


def test_a_single_set_has_no_line_over_all_sets(outcomes: list[dict[str, Any]]) -> None:
    alone = STUDY.model_copy(update={"sets": {"one": STUDY.sets["one"]}})
    assert {line.set for line in lines_of(alone, outcomes)} == {"one"}


def test_markdown_shows_means_failures_and_who_looked_at_the_test_split(
    outcomes: list[dict[str, Any]],
) -> None:
    text = markdown(lines_of(STUDY, outcomes))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 9
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    assert "2; seed 1 failed: broken \\| badly" in text
    values = by_hand(outcomes, ["one"], "real", "accuracy, %")
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert f"| {np.mean(values):.2f} +- {(high - low) / 2:.2f} |" in rows[2]
    assert NOTE in text
    honest = STUDY.model_copy(update={"rows": ROWS[:2]})
    assert NOTE not in markdown(lines_of(honest, outcomes))


def test_csv_and_json_hold_what_the_table_holds(
    outcomes: list[dict[str, Any]], tmp_path: Path
) -> None:
    lines = lines_of(STUDY, outcomes)
    rows = list(csv.DictReader(io.StringIO(as_csv(lines))))
    assert len(rows) == len(lines) * len(COLUMNS)
    by_place = {(row["set"], row["row"], row["measure"]): row for row in rows}
    write_table(STUDY, outcomes, tmp_path)
    assert (tmp_path / "table.csv").read_text() == as_csv(lines)
    assert (tmp_path / "table.md").read_text() == markdown(lines)
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["cells"] == outcomes
    for line, kept in zip(lines, stored["lines"], strict=True):
        for column, measured in line.measures.items():
            row = by_place[(line.set, line.row, column)]
            assert float(row["mean"]) == measured.mean == kept["measures"][column]["mean"]
            assert int(row["seeds"]) == measured.n == kept["measures"][column]["n"]
            assert (row["test_selected"] == "True") is line.test_selected


def test_the_figure_has_a_panel_per_set_and_marks_the_test_selected(
    outcomes: list[dict[str, Any]], tmp_path: Path
) -> None:
    lines = lines_of(STUDY, outcomes)
    figure = draw(lines)
    assert [axes.get_title() for axes in figure.axes] == ["one", "two", ALL_SETS]
    markers = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [marker.get_xdata()[0] for marker in markers] == [
        line.measures["gap, pp"].mean for line in lines[:3]
    ]
    hollow = [marker.get_markerfacecolor() == "white" for marker in markers]
    assert hollow == [row.test_selected for row in ROWS]
    write_table(STUDY, outcomes, tmp_path)
    assert (tmp_path / "figure.svg").read_text().lstrip().startswith("<?xml")


def test_rows_without_an_outcome_say_so() -> None:
    figure = draw(lines_of(STUDY, []))
    assert {text.get_text() for axes in figure.axes for text in axes.texts} == {"to do"}
