"""The outcomes of a study as a table (Markdown, CSV, JSON) and a figure.

Intervals are 95 % intervals of Student's t over seeds; with one seed there is none. "All sets" is
the mean over sets for each seed that all sets have, then treated alike.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from knowledge_recycling.storage import write_json, write_text, written_beside
from knowledge_recycling.study.plan import Row, Study

Outcome = dict[str, Any]

ALL_SETS = "all sets"
COLUMNS = {
    "accuracy, %": ("test", "accuracy", 100),
    "balanced accuracy, %": ("test", "balanced_accuracy", 100),
    "AUROC, %": ("test", "auroc", 100),
    "ECE, %": ("test", "ece", 100),
    "gap, pp": ("gap", "accuracy_pp", 1),
    "balanced gap, pp": ("gap", "balanced_accuracy_pp", 1),
    "AUROC gap, pp": ("gap", "auroc_pp", 1),
    "val accuracy, %": ("val", "accuracy", 100),
    "val balanced accuracy, %": ("val", "balanced_accuracy", 100),
    "val AUROC, %": ("val", "auroc", 100),
    "val ECE, %": ("val", "ece", 100),
}
"""Column to where an outcome has it, and its factor; without `val`: of the test split."""
SHOWN = ("accuracy, %", "balanced accuracy, %", "AUROC, %", "ECE, %", "gap, pp", "val accuracy, %")
"""Columns of the Markdown table."""
NOTE = "[test-selected]: the test split itself picked the candidate; not comparable with the rest."


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % t interval, empty where there is none."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    """Seeds."""


@dataclass(frozen=True)
class Line:
    """One row of the table: a row of the study on one set, or over all."""

    set: str
    row: str
    test_selected: bool
    measures: dict[str, Mean]
    """By column."""
    failures: dict[int, str]
    """By seed."""


def over_seeds(values: Sequence[float]) -> Mean:
    """Returns mean and 95 % interval of Student's t.

    >>> over_seeds([1.0, 2.0, 3.0])
    Mean(mean=2.0, low=-0.484..., high=4.484..., n=3)
    >>> over_seeds([1.0])
    Mean(mean=1.0, low=None, high=None, n=1)
    """
    if not values:
        return Mean(None, None, None, 0)
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Mean(mean, None, None, 1)
    half = float(stats.sem(values) * stats.t.ppf(0.975, n - 1))
    return Mean(mean, mean - half, mean + half, n)


def lines_of(study: Study, outcomes: list[Outcome]) -> list[Line]:
    """Returns the table: each set's rows, then, of several sets, those over all of them."""
    lines = [line_of(row, [name], outcomes) for name in study.sets for row in study.lines]
    if len(study.sets) > 1:
        lines += [line_of(row, list(study.sets), outcomes) for row in study.lines]
    return lines


def line_of(row: Row, sets: list[str], outcomes: list[Outcome]) -> Line:
    """Returns the line of a row on one set, or over several."""
    of_row = [each for each in outcomes if each["row"] == row.name and each["set"] in sets]
    by_seed: dict[int, list[Outcome]] = {}
    for each in of_row:
        by_seed.setdefault(each["seed"], []).append(each)
    failures = {
        seed: next(each["failure"] for each in group if each["failure"])
        for seed, group in by_seed.items()
        if any(each["failure"] for each in group)
    }
    whole = [
        group for seed, group in by_seed.items() if seed not in failures and len(group) == len(sets)
    ]
    measures = {
        column: over_seeds(
            [factor * float(np.mean([each[part][name] for each in group])) for group in whole]
        )
        for column, (part, name, factor) in COLUMNS.items()
    }
    place = sets[0] if len(sets) == 1 else ALL_SETS
    return Line(place, row.label, row.test_selected, measures, failures)


def write_table(study: Study, outcomes: list[Outcome], out: Path) -> None:
    """Writes `table.md`, `table.csv`, `table.json` and `figure.svg` into `out`."""
    lines = lines_of(study, outcomes)
    write_text(out / "table.md", markdown(lines))
    write_text(out / "table.csv", as_csv(lines))
    write_json(
        out / "table.json",
        {
            "schema": "1",
            "study": study.model_dump(mode="json", exclude={"compute"}),
            "test_selected_note": NOTE,
            "cells": outcomes,
            "lines": [asdict(line) for line in lines],
        },
    )
    with written_beside(out / "figure.svg") as beside:
        draw(lines).savefig(beside, format="svg", metadata={"Date": None})


def markdown(lines: list[Line]) -> str:
    """Returns the table for people; a missing interval is a missing +-."""
    head = ["set", "row", *SHOWN, "seeds"]
    rows = [
        [*map(_escaped, (line.set, line.row)), *(_said(line.measures[c]) for c in SHOWN), _n(line)]
        for line in lines
    ]
    table = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    notes = ["", "Mean +- half the 95 % interval (Student's t) over seeds, test split but for val."]
    if any(line.test_selected for line in lines):
        notes += ["", NOTE]
    return "\n".join([*table, *notes]) + "\n"


def _said(measure: Mean) -> str:
    if measure.mean is None:
        return "-"
    if measure.high is None:
        return f"{measure.mean:.2f}"
    return f"{measure.mean:.2f} +- {measure.high - measure.mean:.2f}"


def _n(line: Line) -> str:
    said = [f"seed {seed} failed: {_escaped(why)}" for seed, why in line.failures.items()]
    return "; ".join([str(line.measures[SHOWN[0]].n), *said])


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def as_csv(lines: list[Line]) -> str:
    """Returns the table for programs: one line for each set, row and column."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["set", "row", "test_selected", "measure", "mean", "low", "high", "seeds", "failed"]
    )
    for line in lines:
        for column, each in line.measures.items():
            place = [line.set, line.row, line.test_selected, column]
            writer.writerow([*place, each.mean, each.low, each.high, each.n, len(line.failures)])
    return file.getvalue()


def draw(lines: list[Line]) -> Figure:
    """Returns the gap in accuracy of each row, a panel for each set; hollow: test-selected."""
    sets = list(dict.fromkeys(line.set for line in lines))
    rows = list(dict.fromkeys(line.row for line in lines))
    size = (4.0 + 2.4 * len(sets), 1.2 + 0.32 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, sets, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for line in (each for each in lines if each.set == name):
            _draw_line(axes, line, rows.index(line.row))
        axes.set(title=name, xlabel="gap to the Teacher, pp")
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(axis="x", linewidth=0.4)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _draw_line(axes: Any, line: Line, position: int) -> None:
    gap, colour = line.measures["gap, pp"], "tab:red" if line.test_selected else "tab:blue"
    if gap.mean is None:
        text = "failed" if line.failures else "to do"
        bottom = axes.get_yaxis_transform()
        axes.text(0.5, position, text, ha="center", va="center", transform=bottom)
        return
    if gap.low is not None:
        axes.plot([gap.low, gap.high], [position, position], color=colour)
    face = "white" if line.test_selected else colour
    axes.plot(gap.mean, position, "o", color=colour, markerfacecolor=face)
