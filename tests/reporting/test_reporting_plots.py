"""Figures: read back as XML with the standard library and compared with the numbers drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from knowledge_recycling.reporting import plots
from knowledge_recycling.reporting.plots import Curve
from knowledge_recycling.reporting.reading import parse_result
from knowledge_recycling.reporting.result import Utility

Values = dict[str, Any]
HREF = "{http://www.w3.org/1999/xlink}href"
LINE = "fill: none; stroke: var(--teacher)"
HOSTILE = [
    "</text><script>alert(1)</script>",
    '" onload="alert(1)',
    "--> <b>$x_1$</b> &amp;",
    "a\x00b\x1b\nc",
    "\u80ba\u708e",
    "fill: #000004",
    "\udcff",
    "x" * 300,
    "",
    "_hidden",
]


def parse(figure: Markup | None) -> ElementTree.Element:
    assert figure is not None
    wrapped = f'<page xmlns:xlink="http://www.w3.org/1999/xlink">{figure}</page>'
    return ElementTree.fromstring(wrapped)[0]  # noqa: S314 -- written by us


def all_figures(values: Values) -> Iterator[Markup | None]:
    result = parse_result(values)
    seen = np.arange(1.0, 9.0)
    yield plots.gap_plot(result.gap)
    yield plots.recall_plot(result)
    for role, who in (("Teacher", result.teacher), ("Student", result.student)):
        yield plots.confusion_plot(role, result.dataset.classes, who.test)
        yield plots.reliability_plot(role, who.test)
    yield plots.training_plot("Teacher", Curve(seen, 1 / seen), Curve(seen[::4], seen[::4] / 9))
    yield plots.candidate_plot(result.candidates)
    yield plots.tuning_plot(result.tuning)
    yield plots.knob_plot(result.tuning)


@pytest.fixture(scope="module")
def figures(finished_run: Any) -> list[Markup | None]:
    return list(all_figures(finished_run.values))


@pytest.fixture
def hostile(result: Values) -> Values:
    result["dataset"]["classes"] = HOSTILE
    result["tuning"][0]["knobs"]["<script>"] = result["tuning"][1]["knobs"]["std"] = "<i>"
    return result


def test_figures_are_sound_whatever_the_names(hostile: Values) -> None:
    figures = list(all_figures(hostile))
    elements = [parse(figure) for figure in figures]
    ids = [each.get("id") for element in elements for each in element.iter() if each.get("id")]
    used = set(re.findall(r'[#(]#?([\w.]+)[")]', "".join(map(str, figures))))
    assert len(ids) == len(set(ids))
    assert set(ids) <= used
    for element in elements:
        tags = {each.tag.rpartition("}")[2] for each in element.iter()}
        assert tags <= {"svg", "g", "path", "use", "defs", "clipPath", "rect", "text", "tspan"}
        for each in element.iter():
            assert not any(name.startswith("on") for name in each.attrib)
            assert each.get(HREF, "#").startswith("#")
        assert element.get("role") == "img"
        assert len(element.get("aria-label") or "") > 20


def test_names_stay_text_that_can_be_selected(hostile: Values) -> None:
    result = parse_result(hostile)
    figure = plots.recall_plot(result)
    texts = {each.text for each in parse(figure).iter() if each.tag.endswith("text")}
    assert "\u80ba\u708e" in texts
    assert "fill: #000004" in texts
    assert "</text><script>al\u2026" in texts


def test_colours_come_from_the_page_alone(figures: list[Markup | None]) -> None:
    for figure in figures:
        for each in parse(figure).iter():
            for colour in re.findall(r"(?:fill|stroke): ([^;]+)", each.get("style") or ""):
                assert colour == "none" or re.fullmatch(r"var\(--[a-z]+\)", colour)


def test_the_same_result_gives_the_same_bytes(figures: list[Markup | None], result: Values) -> None:
    assert list(all_figures(result)) == figures


def test_confusion_cells_are_as_strong_as_their_share_of_the_row() -> None:
    counts = np.array([[30, 10, 0], [0, 5, 0], [0, 0, 0]])
    utility = Utility.model_validate({"confusion": counts.tolist()})
    figure = parse(plots.confusion_plot("Student", ["a", "b", "c"], utility))
    styles = [each.get("style") or "" for each in figure.iter() if each.tag.endswith("path")]
    drawn = [style for style in styles if "fill: var(--student)" in style]
    opacity = [float((re.search(r"opacity: ([\d.]+)", each) or ["", "1"])[1]) for each in drawn]
    assert opacity == pytest.approx([0.1 + 0.9 * share for share in (0.75, 0.25, 1.0)])
    texts = [each.text for each in figure.iter() if each.tag.endswith("text")]
    assert sorted(texts)[:3] == ["10", "30", "5"]
    assert "35 of 45" in (figure.get("aria-label") or "")


def test_reliability_dots_lie_where_the_bins_say() -> None:
    bins = [(0.25, 0.5, 10), (0.55, 0.0, 0), (0.75, 0.6, 30)]
    names = ("confidence", "accuracy", "count")
    utility = Utility.model_validate(
        {"reliability": [dict(zip(names, each, strict=True)) for each in bins]}
    )
    paths = parse(plots.reliability_plot("Teacher", utility)).iter("path")
    (line,) = (each.get("d") or "" for each in paths if LINE in (each.get("style") or ""))
    points = [tuple(map(float, each)) for each in re.findall(r"([\d.]+) ([\d.]+)", line)]
    assert len(points) == 2  # the empty bin is left out
    (x0, y0), (x1, y1) = points
    assert (x1 - x0) / (y0 - y1) == pytest.approx(50 / 10, rel=1e-3)  # equal axes, y downwards


def test_a_thinned_curve_averages_equal_bins() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    curve = Curve(np.arange(1000.0), values)
    thin = curve.thinned(100)
    slow = [float(np.mean(values[start : start + 10])) for start in range(0, 1000, 10)]
    np.testing.assert_allclose(thin.values, slow)
    np.testing.assert_array_equal(thin.images_seen, np.arange(9, 1000, 10))
    np.testing.assert_array_equal(curve.thinned(5000).values, values)


def test_nothing_to_draw_is_no_figure(result: Values) -> None:
    for who in ("teacher", "student"):
        result[who]["test"] |= {"recall": [], "confusion": [], "reliability": []}
    read = parse_result(result)
    nothing = Curve(np.array([]), np.array([]))
    assert plots.recall_plot(read) is None
    assert plots.confusion_plot("Student", read.dataset.classes, read.student.test) is None
    assert plots.reliability_plot("Student", read.student.test) is None
    assert plots.training_plot("Student", nothing, nothing) is None
    assert plots.candidate_plot(()) is plots.tuning_plot(()) is plots.knob_plot(()) is None
    assert plots.knob_plot(read.tuning[:1]) is None


def test_with_very_many_classes_the_worst_are_shown(result: Values) -> None:
    count = 200
    result["dataset"] |= {"classes": [f"c{index}" for index in range(count)], "counts": {}}
    recalls = np.random.default_rng(0).permutation(np.linspace(0, 1, count))
    for who in ("teacher", "student"):
        result[who] = {"test": {"recall": recalls.tolist(), "confusion": np.eye(count).tolist()}}
    read = parse_result(result)
    texts = [each.text or "" for each in parse(plots.recall_plot(read)).iter()]
    shown = [text for text in texts if re.fullmatch(r"c\d+", text)]
    worst = sorted(range(count), key=lambda index: recalls[index])[: plots.READABLE_CLASSES]
    assert shown == [f"c{index}" for index in sorted(worst)]
    assert plots.confusion_plot("Student", read.dataset.classes, read.student.test) is None


def test_candidates_that_all_failed_are_still_drawn(result: Values) -> None:
    for each in (*result["candidates"], *result["tuning"]):
        each |= {
            "cas": None,
            "robust_cas": None,
            "auroc": None,
            "loss": None,
            "failure": "none",
            "chosen": False,
        }
    read = parse_result(result)
    for figure in (plots.candidate_plot(read.candidates), plots.tuning_plot(read.tuning)):
        assert "Chosen: none" in (parse(figure).get("aria-label") or "")
