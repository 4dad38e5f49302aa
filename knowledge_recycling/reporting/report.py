"""The report: one self-contained HTML page that says what a finished run reached.

It only reads the run folder: `result.json`, the training logs and the sample images. The page has
no script, no address outside itself, and no real image in its public variant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from knowledge_recycling.errors import RunError
from knowledge_recycling.reporting import audit_plots, plots
from knowledge_recycling.reporting.page import render
from knowledge_recycling.reporting.reading import read_result
from knowledge_recycling.reporting.result import Attack, Audit, Result, Roc
from knowledge_recycling.reporting.samples import ClassSamples, read_samples
from knowledge_recycling.reporting.sharing import shareable
from knowledge_recycling.reporting.wording import Verdict, fidelity_sentence, number, plain, verdict
from knowledge_recycling.rundir import check_done
from knowledge_recycling.storage import write_text

MAIN_TARGETS = {"teacher", "student"}
"""Rows of the table of yardsticks that are the run's own."""


@dataclass(frozen=True)
class Confusion:
    """Images of one class that the Student took for another."""

    true_class: str
    taken_for: str
    count: int
    of: int
    """Images of the true class."""


@dataclass(frozen=True)
class Figures:
    """The drawings of the page; `None` where the run has nothing to draw."""

    gap: Markup
    rows: Markup | None
    """The further rows beside Teacher and Student."""
    recall: Markup | None
    confusion: Mapping[str, Markup | None]
    reliability: Mapping[str, Markup | None]
    training: Mapping[str, Markup | None]
    candidates: Markup | None
    tuning: Markup | None
    knobs: Markup | None
    roc: Markup | None
    frontier: Markup | None


@dataclass(frozen=True)
class AttackRow:
    """One attack on one target."""

    target: str
    name: str
    attack: Attack


@dataclass(frozen=True)
class AttackRows:
    """All attacks, those that matter most apart."""

    main: tuple[AttackRow, ...]
    others: tuple[AttackRow, ...]


@dataclass(frozen=True)
class View:
    """Everything the template shows."""

    result: Result
    public: bool
    verdict: Verdict
    fidelity: str
    figures: Figures
    confusions: tuple[Confusion, ...]
    samples: tuple[ClassSamples, ...]
    quality: Mapping[str, str]
    """Value as shown, by metric."""
    baseline: float | None
    """Accuracy of always answering the most frequent class of the test split."""
    leakage: AttackRows
    false_alarm_rates: tuple[float, ...]
    """Columns of the table of attacks."""
    readable_classes: int = plots.READABLE_CLASSES


def write_report(
    run_folder: Path | str, *, public: bool = False, target: Path | str | None = None
) -> Path:
    """Writes the report of a finished run and returns where it is.

    Args:
        run_folder: The run.
        public: Leave out every real image and all text that may name files, to hand the page on.
        target: HTML file to write; `None`: `report.html` or `report-public.html` in the run.

    Raises:
        RunError: The run has no readable result, a file of a stage is missing or changed, or the
            page cannot be written.
    """
    folder = Path(run_folder)
    page = render("template.html", vars(_view(folder, public=public)))
    written = Path(target or folder / ("report-public.html" if public else "report.html"))
    write_text(written, page)
    return written


def _view(run_folder: Path, *, public: bool) -> View:
    result = read_result(run_folder)
    for name in result.stages:
        check_done(run_folder / name)
    if public:
        result = shareable(result)
    classes = result.dataset.classes
    return View(
        result=result,
        public=public,
        verdict=verdict(result),
        fidelity=fidelity_sentence(result),
        figures=_figures(result, run_folder),
        confusions=_largest_confusions(result),
        samples=read_samples(
            run_folder, classes, with_real=not public, limit=plots.READABLE_CLASSES
        ),
        quality=dict(_shown(result.quality)),
        baseline=_baseline(result.dataset.counts.get("test", ())),
        leakage=_attack_rows(result),
        false_alarm_rates=_false_alarm_rates(result),
    )


def _shown(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _shown(value, f"{prefix}{name}_")
        else:
            is_number = isinstance(value, int | float | None)
            yield prefix + name, number(value) if is_number else plain(value)


def _baseline(counts: Sequence[int]) -> float | None:
    return max(counts) / sum(counts) if sum(counts) else None


def _attack_rows(result: Result) -> AttackRows:
    """Returns the primary and the strongest attack on each target, and apart from them the rest.

    Yardsticks have a table of their own, so that all attacks on them are of the rest.
    """
    primary = result.audit.primary_attack if result.audit else None
    compared = {row.name for row in result.audit.yardsticks} if result.audit else set()
    main: list[AttackRow] = []
    others: list[AttackRow] = []
    for target, attacks in result.privacy.items():
        strongest = max(attacks, key=lambda name: attacks[name].auc or 0.0)
        for name, attack in attacks.items():
            row = AttackRow(target, f"{name} (strongest)" if name == strongest else name, attack)
            apart = target.partition(", ")[0] in compared - MAIN_TARGETS
            (main if name in (primary, strongest) and not apart else others).append(row)
    return AttackRows(tuple(main), tuple(others))


def _main_curves(audit: Audit | None) -> dict[str, Roc]:
    """Returns the ROC of the targets that are no yardsticks."""
    if audit is None:
        return {}
    apart = {row.name for row in audit.yardsticks} - MAIN_TARGETS
    return {name: curve for name, curve in audit.roc.items() if name not in apart}


def _false_alarm_rates(result: Result) -> tuple[float, ...]:
    attacks = [each for by_name in result.privacy.values() for each in by_name.values()]
    return tuple(sorted({rate for each in attacks for rate in each.tpr_at_fpr}, reverse=True))


def _figures(result: Result, run_folder: Path) -> Figures:
    classifiers = {"Teacher": result.teacher.test, "Student": result.student.test}
    classes = result.dataset.classes
    return Figures(
        gap=plots.gap_plot(result.gap),
        rows=_rows_plot(result),
        recall=plots.recall_plot(result),
        confusion={
            role: plots.confusion_plot(role, classes, utility)
            for role, utility in classifiers.items()
        },
        reliability={
            role: plots.reliability_plot(role, utility) for role, utility in classifiers.items()
        },
        training={
            role: _training_plot(role, run_folder) for role in ("Teacher", "Student", "Generator")
        },
        candidates=plots.candidate_plot(result.candidates),
        tuning=plots.tuning_plot(result.tuning),
        knobs=plots.knob_plot(result.tuning),
        roc=audit_plots.roc_plot(_main_curves(result.audit)),
        frontier=audit_plots.frontier_plot(result.audit.yardsticks if result.audit else ()),
    )


def _rows_plot(result: Result) -> Markup | None:
    rows = {"Teacher": result.teacher, "Student": result.student}
    rows |= {row.name: row for row in result.rows}
    accuracies = {name: row.test.accuracy for name, row in rows.items()}
    return (
        plots.accuracy_plot(list(rows), {"Student": list(accuracies.values())})
        if result.rows
        else None
    )


def _training_plot(role: str, run_folder: Path) -> Markup | None:
    path = run_folder / role.lower() / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        entries = [json.loads(line) for line in lines]
        loss, val_accuracy = _curve(entries, "loss"), _curve(entries, "val_accuracy")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            "a training log cannot be read",
            where=path,
            expected="a JSON object with images_seen and loss on each line",
            got=error,
            next_step=f"write it again with `kr run RECIPE --redo {path.parent.name}`",
        ) from None
    return plots.training_plot(role, loss, val_accuracy)


def _curve(entries: Sequence[Mapping[str, Any]], key: str) -> plots.Curve:
    logged = [(entry["images_seen"], entry[key]) for entry in entries if key in entry]
    seen, values = np.array(logged, dtype=np.float64).reshape(-1, 2).T
    return plots.Curve(seen, values)


def _largest_confusions(result: Result, count: int = 8) -> tuple[Confusion, ...]:
    names, matrix = result.dataset.classes, result.student.test.confusion
    wrong = [
        Confusion(names[true], names[predicted], images, of=sum(row))
        for true, row in enumerate(matrix)
        for predicted, images in enumerate(row)
        if images and predicted != true
    ]
    return tuple(sorted(wrong, key=lambda each: -each.count)[:count])
