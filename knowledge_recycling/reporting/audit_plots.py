"""The figures of the audit: the ROC on log axes, and utility against leakage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from knowledge_recycling.reporting.result import Measure, Roc, Yardstick
from knowledge_recycling.reporting.svg import (
    INK,
    MUTED,
    STUDENT,
    TEACHER,
    inline_svg,
    new_figure,
    styled,
)

_COLOURS = {"teacher": TEACHER, "student": STUDENT}
_LINES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))


@styled
def roc_plot(curves: Mapping[str, Roc]) -> Markup | None:
    """Returns true against false positive rates in percent, on log axes; `None` without any."""
    if not curves:
        return None
    figure, (axes,) = new_figure(4.2)
    smallest = min(curve.fpr[0] for curve in curves.values())
    axes.plot([100 * smallest, 100], [100 * smallest, 100], color=MUTED, linewidth=0.8)
    for number, (name, curve) in enumerate(curves.items()):
        colour, line = _COLOURS.get(name, INK), _LINES[number % len(_LINES)]
        fpr, tpr = ([100 * each for each in part] for part in (curve.fpr, curve.tpr))
        axes.plot(fpr, tpr, color=colour, linestyle=line, label=name)
        if curve.low is not None and curve.high is not None and name in _COLOURS:
            low, high = ([100 * each for each in part] for part in (curve.low, curve.high))
            axes.fill_between(fpr, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(xscale="log", yscale="log", xlim=(100 * smallest, 100), ylim=(100 * smallest, 110))
    axes.set(xlabel="false positives, %", ylabel="true positives, %")
    for axis in (axes.xaxis, axes.yaxis):  # the usual labels of log axes are formulas
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside upper center", ncols=2)
    return inline_svg(figure, f"ROC of the primary attack on {', '.join(curves)}, log axes")


@styled
def frontier_plot(yardsticks: Sequence[Yardstick]) -> Markup | None:
    """Returns accuracy against AUC and against TPR at 1 % FPR, numbered as the rows of the table.

    `None` without yardsticks.
    """
    if not yardsticks:
        return None
    figure, axes = new_figure(5.6, rows=2)
    for number, row in enumerate(yardsticks, start=1):
        _draw_point(axes[0], number, row, row.auc, 1.0)
        _draw_point(axes[1], number, row, row.tpr, 100.0)
    axes[0].set(xlabel="AUC of the primary attack", ylabel="accuracy, %")
    axes[1].set(xlabel="members found at 1 % false positives, %", ylabel="accuracy, %")
    spoken = "; ".join(
        f"{number} {row.name}: accuracy {_spoken(row.accuracy, 100)} %, AUC {_spoken(row.auc)}"
        for number, row in enumerate(yardsticks, start=1)
    )
    return inline_svg(figure, f"Utility against leakage: {spoken}")


def _draw_point(axes: Axes, number: int, row: Yardstick, leakage: Measure, scale: float) -> None:
    if leakage.value is None or row.accuracy.value is None:
        return
    x, y = scale * leakage.value, 100 * row.accuracy.value
    colour = _COLOURS.get(row.name, INK)
    wide, high = _reach(leakage, scale), _reach(row.accuracy, 100)
    axes.errorbar(x, y, xerr=wide, yerr=high, color=colour, fmt="o", elinewidth=0.7)
    axes.annotate(str(number), (x, y), (4, 4), textcoords="offset points", color=colour)


def _reach(measure: Measure, scale: float) -> list[list[float]] | None:
    if measure.value is None or measure.low is None or measure.high is None:
        return None
    below, above = measure.value - measure.low, measure.high - measure.value
    return [[max(0.0, scale * below)], [max(0.0, scale * above)]]


def _spoken(measure: Measure, scale: float = 1.0) -> str:
    return "not measured" if measure.value is None else f"{scale * measure.value:.3g}"
