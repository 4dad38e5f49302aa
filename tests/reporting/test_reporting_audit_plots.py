"""The audit's figures, read back as XML: every row is drawn where its numbers are."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from knowledge_recycling.reporting.audit_plots import frontier_plot, roc_plot
from knowledge_recycling.reporting.result import Roc, Yardstick


def parse(figure: Markup | None) -> ElementTree.Element:
    assert figure is not None
    wrapped = f'<page xmlns:xlink="http://www.w3.org/1999/xlink">{figure}</page>'
    return ElementTree.fromstring(wrapped)[0]  # noqa: S314 -- written by us


def texts(figure: Markup | None) -> list[str]:
    return [each.text or "" for each in parse(figure).iter() if each.tag.endswith("text")]


def row(name: str, accuracy: Any, auc: Any, tpr: Any) -> Yardstick:
    return Yardstick(name=name, accuracy=accuracy, auc=auc, tpr=tpr)


INTERVAL = {"value": 0.8, "low": 0.7, "high": 0.85}


def test_each_row_is_numbered_in_both_panels_where_it_has_a_number() -> None:
    figure = frontier_plot(
        [
            row("random guess", 0.5, 0.5, 0.01),
            row("teacher", INTERVAL, {"value": 0.6, "low": 0.55, "high": 0.65}, None),
            row("<b>&", INTERVAL, 0.55, {"value": 0.03, "low": 0.01, "high": 0.06}),
        ]
    )
    shown = texts(figure)
    first = shown.index("accuracy, %") + 1  # points are drawn after their panel's axes
    assert shown[first : first + 3] == ["1", "2", "3"]
    assert shown[-3:] == ["accuracy, %", "1", "3"], "row 2 is not resolvable at 1 %"
    spoken = parse(figure).attrib["aria-label"]
    assert "2 teacher: accuracy 80 %, AUC 0.6" in spoken
    assert "3 <b>&: accuracy 80 %, AUC 0.55" in spoken
    assert "var(--teacher)" in str(figure)


def test_the_roc_has_a_line_and_a_name_for_each_target_and_plain_ticks() -> None:
    fpr, tpr = (0.001, 0.01, 0.1, 1.0), (0.0, 0.02, 0.2, 1.0)
    curves = {
        "teacher": Roc(fpr=fpr, tpr=tpr, low=tpr, high=tpr),
        "overfitted classifier (sanity)": Roc(fpr=fpr, tpr=tpr),
    }
    shown = texts(roc_plot(curves))
    assert curves.keys() <= set(shown)
    assert {"0.1", "1", "10", "100"} <= set(shown)
    assert not any("mathdefault" in each for each in shown)


def test_without_an_audit_there_is_nothing_to_draw() -> None:
    assert frontier_plot([]) is None
    assert roc_plot({}) is None
