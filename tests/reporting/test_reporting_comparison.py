"""Several runs on one page: their figures side by side, and no more than the runs say."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_reporting_report import Page

from knowledge_recycling.errors import RunError
from knowledge_recycling.reporting.comparison import write_comparison

Values = dict[str, Any]
HIDDEN = "/home/someone"
AUDIT = {"mode": "pipeline", "shadows": 16, "images": 1234, "primary_attack": "lira"}


@pytest.fixture
def runs(result: Values, tmp_path: Path) -> list[Path]:
    """Two runs: the finished one, and one of another seed that was audited."""
    other = copy.deepcopy(result) | {"seed": 7, "audit": AUDIT}
    other["changed_settings"] |= {"student.temperature": 4.0, "seed": 7}
    other["student"]["test"]["accuracy"] = {"value": 0.5, "low": 0.41, "high": 0.59}
    other["gap"] |= {"accuracy_pp": -44.4, "accuracy_ci95": [-50.0, -39.9]}
    attacks = {"lira": {"auc": 0.61, "ci95": {"auc": [0.58, 0.64]}}, "loss": {"auc": 0.55}}
    other["privacy"] = {"student": attacks, "teacher": {"lira": {"auc": 0.99}}}
    other["cost"]["seconds"] |= {"audit": 7200.0}
    folders = []
    for name, values in (("plain", result), ("audited", other)):
        folders.append(tmp_path / "runs" / name)
        folders[-1].mkdir(parents=True)
        (folders[-1] / "result.json").write_text(json.dumps(values))
    return folders


def compared(runs: list[Path], **options: Any) -> Page:
    target = runs[0].parent / "page.html"
    write_comparison(runs, target, **options)
    return Page(target)


def test_teacher_student_gap_leakage_and_cost_of_each_run(runs: list[Path]) -> None:
    text = compared(runs).text
    assert "All runs were tested on the same images" in text
    row = re.search(r"audited digits 7 360 (.*?) Accuracy on", text)
    assert row is not None
    for shown in (
        "50.0 41.0\u201359.0",
        "\u221244.4 \u221250.0 to \u221239.9",
        "0.61 0.58\u20130.64",
    ):
        assert shown in row[1]
    assert "2 h 03 min" in row[1]
    assert "0.99" not in text
    assert re.search(r"plain digits 0 360 .* not audited 3 min 34 s", text)
    assert "audited lira pipeline 16 1,234" in text


def test_only_settings_that_differ_are_listed(runs: list[Path]) -> None:
    _, settings = compared(runs).text.split("Settings that differ between the runs")
    assert re.search(r"student\.temperature 2\.0 4\.0", settings)
    assert re.search(r"seed 7", settings)
    assert "generator.images" not in settings


def test_other_test_images_are_pointed_out(runs: list[Path]) -> None:
    values = json.loads((runs[0] / "result.json").read_text())
    values["digests"]["test"] = "d" * 64
    (runs[0] / "result.json").write_text(json.dumps(values))
    assert "not all tested on the same images" in compared(runs).text


def test_runs_of_one_name_are_told_apart_by_their_folders(runs: list[Path]) -> None:
    twin = runs[0].parent.parent / "more" / "plain"
    twin.mkdir(parents=True)
    (twin / "result.json").write_text((runs[1] / "result.json").read_text())
    text = compared([runs[0], twin]).text
    assert "runs/plain" in text
    assert "more/plain" in text


def test_the_public_page_names_no_folder_and_no_file(runs: list[Path]) -> None:
    for run, path in zip(runs, ("a", "b"), strict=True):
        values = json.loads((run / "result.json").read_text())
        values["changed_settings"]["data.path"] = f"{HIDDEN}/{path}"
        (run / "result.json").write_text(json.dumps(values))
    assert HIDDEN in compared(runs).source
    public = compared(runs, public=True)
    assert "Run 2" in public.text
    for hidden in (HIDDEN, "audited digits", "plain digits", str(runs[0])):
        assert hidden not in public.text


def test_the_page_stands_alone_and_escapes(runs: list[Path]) -> None:
    attack = "<script>alert(1)</script>"
    values = json.loads((runs[0] / "result.json").read_text())
    values["dataset"]["name"] = attack
    values["changed_settings"] = {attack: attack}
    values["quality"] = {attack: 1.0}
    values["cost"]["seconds"] = {attack: 1.0}
    (runs[0] / "result.json").write_text(json.dumps(values))
    page = compared(runs)
    assert page.count("script") == page.count("img") == 0
    assert page.text.count(attack) >= 5
    assert not re.search(r"@import|url\((?!#)|https?://", page.source)
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert page.count("svg") == 3


def test_a_bare_result_can_be_compared(runs: list[Path], result: Values) -> None:
    kept = ("schema", "dataset", "profile", "seed")
    bare = {key: result[key] for key in kept} | {"teacher": {}, "student": {}, "gap": {}}
    (runs[0] / "result.json").write_text(json.dumps(bare))
    assert "not audited" in compared(runs).text
    assert "None of these runs was audited" in compared([runs[0], runs[0]]).text


def test_a_run_without_a_result_is_named_and_nothing_is_written(runs: list[Path]) -> None:
    with pytest.raises(RunError, match="no result") as caught:
        compared([runs[0], runs[0].parent / "nothing"])
    assert "nothing" in str(caught.value.where)
    assert not (runs[0].parent / "page.html").exists()


def test_the_command_takes_one_run_or_several(runs: list[Path]) -> None:
    command = [sys.executable, "-m", "knowledge_recycling.cli", "report"]
    page, one = runs[0].parent / "two.html", runs[0].parent / "one.html"
    for folders, target in ((runs, page), (runs[:1], one)):
        subprocess.run([*command, *folders, "--out", target], check=True, timeout=120)
    assert "2 runs compared" in Page(page).text
    assert "report of one run" in Page(one).text
