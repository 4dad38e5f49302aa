"""The figures of the report, as inline SVG.

Every figure takes parts of a result and carries a sentence for those who cannot see it. Accuracies
are drawn in percent. Shapes: K classes, n entries of a training log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

from knowledge_recycling.reporting.result import (
    Candidate,
    Gap,
    Measure,
    Result,
    Scored,
    Trial,
    Utility,
)
from knowledge_recycling.reporting.svg import (
    GENERATOR,
    INK,
    MUTED,
    PAPER,
    STUDENT,
    TEACHER,
    inline_svg,
    new_figure,
    styled,
)

READABLE_CLASSES = 60
"""With more classes than this a figure by class cannot be read, and is cut or left out."""
NAMED_CLASSES = 30
"""With more classes than this a confusion matrix has no room for their names."""

_COLOURS = {"Teacher": TEACHER, "Student": STUDENT, "Generator": GENERATOR}
_MARKERS = {"Teacher": "o", "Student": "D"}


@dataclass(frozen=True)
class Curve:
    """One logged quantity along a training."""

    images_seen: npt.NDArray[np.float64]
    """[n], images shown to the model up to each entry."""
    values: npt.NDArray[np.float64]
    """[n]."""

    def __len__(self) -> int:
        return len(self.values)

    def thinned(self, points: int = 300) -> Curve:
        """Returns the curve averaged in at most `points` bins of about equally many entries."""
        bins = np.array_split(np.arange(len(self)), min(points, len(self)))
        last = [each[-1] for each in bins]
        return Curve(self.images_seen[last], np.array([self.values[each].mean() for each in bins]))


@styled
def gap_plot(gap: Gap) -> Markup:
    """Returns the gap in each metric that has one, with its interval, about a line at zero."""
    names = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
    return interval_plot({label: gap.measure(metric) for metric, label in names.items()})


@styled
def interval_plot(
    measures: Mapping[str, Measure],
    *,
    reference: float = 0.0,
    label: str = "Student minus Teacher, percentage points",
) -> Markup:
    """Returns one measure of the Student in several rows, about a line at `reference`."""
    figure, axes = new_figure(1.0 + 0.3 * len(measures))
    for position, measure in enumerate(measures.values()):
        _draw_interval(axes[0], position, measure, "Student")
    axes[0].axvline(reference, color=INK, linewidth=0.8)
    _name_rows(axes[0], _labels(list(measures), 22))
    axes[0].xaxis.set_major_locator(MaxNLocator(6))
    axes[0].set_xlabel(label)
    spoken = "; ".join(f"{name} {_spoken(measure)}" for name, measure in measures.items())
    return inline_svg(figure, f"{label}, with 95 % intervals: {spoken}")


@styled
def accuracy_plot(names: Sequence[str], by_role: Mapping[str, Sequence[Measure]]) -> Markup:
    """Returns accuracies on the test split in named rows, by role, with their intervals."""
    figure, axes = new_figure(1.1 + 0.3 * len(names))
    _draw_rows(axes[0], by_role)
    _name_rows(axes[0], _labels(names, 22))
    axes[0].set_xlabel("accuracy on the test split, %")
    if len(by_role) > 1:
        _legend(figure)
    spoken = [
        f"{name} {' and '.join(_spoken(_percent(values[row])) for values in by_role.values())}"
        for row, name in enumerate(names)
    ]
    return inline_svg(figure, f"Accuracy of the {' and '.join(by_role)}: {'; '.join(spoken)}")


@styled
def recall_plot(result: Result) -> Markup | None:
    """Returns Teacher's and Student's recall of each class on the test split.

    With more than `READABLE_CLASSES` classes only those that the Student recalls worst; `None`
    where the result has no recalls.
    """
    recalls = {"Teacher": result.teacher.test.recall, "Student": result.student.test.recall}
    if not all(recalls.values()):
        return None
    worst_first = np.argsort([_number(measure) for measure in recalls["Student"]], kind="stable")
    shown = np.sort(worst_first[:READABLE_CLASSES])
    figure, axes = new_figure(1.1 + 0.3 * len(shown))
    _draw_rows(axes[0], {role: [rows[i] for i in shown] for role, rows in recalls.items()})
    labels = _labels(result.dataset.classes, 18)
    _name_rows(axes[0], [labels[index] for index in shown])
    axes[0].set_xlabel("recall, %")
    _legend(figure)
    return inline_svg(figure, f"Recall of {len(shown)} classes by Teacher and Student")


@styled
def confusion_plot(role: str, classes: Sequence[str], utility: Utility) -> Markup | None:
    """Returns a confusion matrix; `None` without one or with over `READABLE_CLASSES` classes.

    A cell is as strong as its share of the true class; counts are written where they fit.
    """
    counts = np.array(utility.confusion, dtype=np.int64)
    if not 0 < len(counts) <= READABLE_CLASSES:
        return None
    figure, (axes,) = new_figure(4.6)
    _draw_cells(axes, counts, _COLOURS[role])
    labels = _labels(classes, 12) if len(classes) <= NAMED_CLASSES else [""] * len(classes)
    size = min(10.0, 240 / len(labels))
    axes.set_xticks(range(len(labels)), labels, rotation=90, color=INK, fontsize=size)
    axes.set_yticks(range(len(labels)), labels, color=INK, fontsize=size)
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5), aspect="equal")
    axes.set(xlabel=f"class according to the {role}", ylabel="true class")
    right = f"{np.trace(counts)} of {counts.sum()} images are on the diagonal"
    return inline_svg(figure, f"Confusion matrix of the {role}: {right}")


def _draw_cells(axes: Axes, counts: npt.NDArray[np.int64], colour: str) -> None:
    axes.grid(visible=False)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row, column in np.argwhere(counts):
        share = float(shares[row, column])
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, alpha=0.1 + 0.9 * share))
        if len(counts) <= 12:
            ink = PAPER if share > 0.5 else INK
            text = axes.text(column, row, str(counts[row, column]), color=ink, fontsize=8.5)
            text.set(ha="center", va="center")


@styled
def reliability_plot(role: str, utility: Utility) -> Markup | None:
    """Returns accuracy against confidence, larger dots for more images; `None` without bins."""
    bins = [each for each in utility.reliability if each.count]
    if not bins:
        return None
    total = sum(each.count for each in bins)
    confidence = [100 * each.confidence for each in bins]
    accuracy = [100 * each.accuracy for each in bins]
    figure, (axes,) = new_figure(4.4)
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot(confidence, accuracy, color=_COLOURS[role], linewidth=1)
    areas = [10 + 150 * each.count / total for each in bins]
    axes.scatter(confidence, accuracy, s=areas, color=_COLOURS[role], zorder=3)
    axes.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
    axes.set(xlabel=f"confidence of the {role}, %", ylabel="accuracy, %")
    points = ", ".join(f"{x:.0f}: {y:.0f}" for x, y in zip(confidence, accuracy, strict=True))
    return inline_svg(
        figure, f"Reliability of the {role}, confidence: accuracy in percent: {points}"
    )


@styled
def training_plot(role: str, loss: Curve, val_accuracy: Curve) -> Markup | None:
    """Returns loss and, where logged, validation accuracy along training; `None` without a log."""
    if not len(loss):
        return None
    loss, panels = loss.thinned(), 2 if len(val_accuracy) else 1
    figure, axes = new_figure(1.0 + 1.4 * panels, rows=panels)
    axes[0].plot(loss.images_seen, loss.values, color=_COLOURS[role])
    axes[0].set_ylabel("training loss")
    spoken = f"loss from {loss.values[0]:.3g} to {loss.values[-1]:.3g}"
    if len(val_accuracy):
        percent = 100 * val_accuracy.values
        axes[1].plot(val_accuracy.images_seen, percent, ".-", color=_COLOURS[role])
        axes[1].set_ylabel("val accuracy, %")
        spoken += f", validation accuracy at the end {percent[-1]:.1f} %"
    for each in axes:
        each.set_xlim(0, 1.02 * loss.images_seen[-1])
        each.tick_params(labelbottom=each is axes[-1])
    _count_images(axes[-1])
    return inline_svg(figure, f"Training of the {role}: {spoken}")


@styled
def candidate_plot(candidates: Sequence[Candidate]) -> Markup | None:
    """Returns CAS and AUROC of each candidate along training; `None` without candidates."""
    if not candidates:
        return None
    seen = [each.images_seen for each in candidates]
    auroc = 100 * _floats(each.auroc for each in candidates)
    figure, (axes,) = new_figure(3.0)
    if np.isfinite(auroc).any():
        axes.plot(seen, auroc, "s-", color=MUTED, markersize=3, linewidth=0.8, label="AUROC")
    axes.plot(seen, _cas(candidates), color=GENERATOR)
    _draw_scored(axes, seen, candidates, GENERATOR)
    axes.set_ylabel("on validation, %")
    _count_images(axes)
    _legend(figure)
    return inline_svg(
        figure, f"CAS of {len(candidates)} candidates along the training. {_best(candidates)}"
    )


@styled
def tuning_plot(trials: Sequence[Trial]) -> Markup | None:
    """Returns the CAS of each trial with the best so far; `None` without trials."""
    if not trials:
        return None
    numbers = [each.trial for each in trials]
    figure, (axes,) = new_figure(3.0)
    mean = (_cas(trials) + _robust_cas(trials)) / 2
    best = np.fmax.accumulate(mean)
    axes.step(numbers, best, where="post", color=MUTED, linewidth=0.8, label="best so far")
    _draw_scored(axes, numbers, trials, STUDENT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel="CAS on validation, %")
    _legend(figure)
    return inline_svg(figure, f"CAS of {len(trials)} tuning trials. {_best(trials)}")


@styled
def knob_plot(trials: Sequence[Trial]) -> Markup | None:
    """Returns CAS against each knob that took several values; `None` where none did."""
    varied = _varied_knobs(trials)
    if not varied:
        return None
    rows = -(-len(varied) // 2)
    figure, axes = new_figure(0.3 + 1.9 * rows, rows=rows, columns=2)
    for each, (name, values) in zip(axes, varied.items(), strict=False):
        _draw_scored(each, _knob_positions(each, values), trials, STUDENT)
        each.set(xlabel=_short(name, 24), ylabel="CAS, %")
    for each in axes[len(varied) :]:
        each.set_visible(False)
    return inline_svg(figure, "CAS on validation against the knobs " + ", ".join(varied))


def _varied_knobs(trials: Sequence[Trial]) -> Mapping[str, list[Any]]:
    names = dict.fromkeys(name for each in trials for name in each.knobs)
    values = {name: [each.knobs.get(name) for each in trials] for name in names}
    return {name: column for name, column in values.items() if len(set(map(str, column))) > 1}


def _knob_positions(axes: Axes, values: Sequence[Any]) -> Sequence[float]:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        axes.xaxis.set_major_locator(MaxNLocator(4))
        return values
    names = sorted(set(map(str, values)))
    axes.set_xticks(range(len(names)), [_short(name, 10) for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    return [names.index(str(value)) for value in values]


def _draw_scored(
    axes: Axes, positions: Sequence[float], tried: Sequence[Scored], colour: str
) -> None:
    axes.plot(positions, _robust_cas(tried), "^", color=colour, alpha=0.5, label="robust CAS")
    axes.plot(positions, _cas(tried), "o", color=colour, label="CAS")
    for position, each, cas in zip(positions, tried, _cas(tried), strict=True):
        if each.failure:
            bottom = axes.get_xaxis_transform()
            axes.plot(position, 0.05, "x", color=INK, transform=bottom, label="failed")
        if each.chosen:
            (ring,) = axes.plot(position, cas, "o", color=INK, markersize=10, label="chosen")
            ring.set_markerfacecolor("none")


def _draw_rows(axes: Axes, by_role: Mapping[str, Sequence[Measure]]) -> None:
    """Draws fractions in percent, a row for each entry and in it one below the other by role."""
    offsets = np.linspace(-0.15, 0.15, len(by_role)) if len(by_role) > 1 else (0.0,)
    for (role, measures), offset in zip(by_role.items(), offsets, strict=True):
        for row, measure in enumerate(measures):
            _draw_interval(axes, row + offset, _percent(measure), role)
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _draw_interval(axes: Axes, position: float, measure: Measure, role: str) -> None:
    colour = _COLOURS[role]
    if measure.low is not None and measure.high is not None:
        axes.plot([measure.low, measure.high], [position, position], color=colour)
    axes.plot(_number(measure), position, _MARKERS[role], color=colour, label=role)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _count_images(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("images seen")


def _legend(figure: Figure) -> None:
    entries = zip(*figure.axes[0].get_legend_handles_labels(), strict=True)
    handles = {label: handle for handle, label in entries}
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper right", ncols=4, columnspacing=1.2
    )


def _percent(measure: Measure) -> Measure:
    scaled = {name: value and 100 * value for name, value in measure}
    return Measure(**scaled)


def _number(measure: Measure) -> float:
    return float("nan") if measure.value is None else measure.value


def _floats(values: Iterable[float | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _cas(tried: Sequence[Scored]) -> npt.NDArray[np.float64]:
    return 100 * _floats(each.cas for each in tried)


def _robust_cas(tried: Sequence[Scored]) -> npt.NDArray[np.float64]:
    return 100 * _floats(each.robust_cas for each in tried)


def _spoken(measure: Measure) -> str:
    if measure.value is None:
        return "not measured"
    between = "" if measure.low is None else f" ({measure.low:.3g} to {measure.high:.3g})"
    return f"{measure.value:.3g}{between}"


def _best(tried: Sequence[Scored]) -> str:
    chosen = [f"{cas:.1f} %" for each, cas in zip(tried, _cas(tried), strict=True) if each.chosen]
    return f"Chosen: {', '.join(chosen) or 'none'}; {sum(map(bool, _failures(tried)))} failed"


def _failures(tried: Sequence[Scored]) -> list[str | None]:
    return [each.failure for each in tried]


def _labels(names: Sequence[str], length: int) -> list[str]:
    """Returns the names cut to `length`, with their number in front where cutting made twins."""
    short = [_short(name, length) for name in names]
    if len(set(short)) == len(short):
        return short
    return [f"{number} {_short(name, length - 3)}" for number, name in enumerate(names, start=1)]


def _short(name: str, length: int) -> str:
    printable = "".join(letter if letter.isprintable() else " " for letter in name)
    return printable if len(printable) <= length else printable[: length - 1] + "\u2026"
