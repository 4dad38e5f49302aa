"""Reading `result.json`: as written, clear about what is wrong, safe to share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knowledge_recycling.errors import RunError
from knowledge_recycling.reporting.reading import parse_result, read_result
from knowledge_recycling.reporting.result import Measure
from knowledge_recycling.reporting.sharing import shareable

Values = dict[str, Any]
MakeRun = Callable[[Values], Path]


def test_keeps_every_value_that_was_written(make_run: MakeRun, result: Values) -> None:
    read = read_result(make_run(result)).model_dump(mode="json")
    read["schema"] = read.pop("schema_version")
    rows, expected_rows = read.pop("rows"), result.pop("rows")
    assert read.pop("further_generators") == {}  # of a run with one generator
    assert read.pop("stages") == {}  # of a run written by hand
    assert read == result
    assert rows[0]["test"] == expected_rows[0]["test"]


def test_a_bare_number_is_a_measure_without_an_interval(result: Values) -> None:
    assert parse_result(result).rows[1].test.accuracy == Measure(value=0.951)


def test_nan_is_not_measured(make_run: MakeRun, result: Values) -> None:
    result["teacher"]["test"]["auroc"] = {"value": float("nan"), "low": float("nan"), "high": 1.0}
    result["gap"]["auroc_ci95"] = [float("nan"), float("inf")]
    read = read_result(str(make_run(result)))
    assert read.teacher.test.auroc == Measure(value=None, low=None, high=1.0)
    assert read.gap.measure("auroc") == Measure(value=result["gap"]["auroc_pp"])


def test_a_newer_run_can_be_read(make_run: MakeRun, result: Values) -> None:
    result["dataset"]["licence"] = result["new"] = "unheard of"
    assert read_result(make_run(result)).seed == result["seed"]


@pytest.mark.parametrize("folder", [False, True], ids=["no folder", "no result"])
def test_a_run_without_result_says_how_to_get_one(tmp_path: Path, folder: bool) -> None:
    if folder:
        (tmp_path / "run").mkdir()
    with pytest.raises(RunError) as caught:
        read_result(tmp_path / "run")
    assert str(tmp_path / "run") in str(caught.value.where)
    assert "kr run" in (caught.value.next_step or "")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "as a whole"),
        ("[1, 2]", "as a whole"),
        ('{"schema": "2"}', "schema"),
        ('{"schema": "1"}', "dataset"),
    ],
)
def test_a_damaged_result_names_the_place(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RunError) as caught:
        read_result(tmp_path)
    assert named in str(caught.value.where)


@pytest.mark.parametrize("key", ["recall", "confusion"])
def test_a_list_by_class_of_another_length_is_refused(
    make_run: MakeRun, result: Values, key: str
) -> None:
    result["student"]["test"][key].pop()
    with pytest.raises(RunError, match="cannot be read") as caught:
        read_result(make_run(result))
    assert "10 entries" in str(caught.value.got)


def test_the_shareable_result_names_no_file(result: Values) -> None:
    result["tuning"][9]["failure"] = "cannot open /home/someone/scans/0007.png"
    result["candidates"][2]["failure"] = "cannot open /home/someone/scans/0008.png"
    result["tuning"][2]["full_failure"] = "cannot open /home/someone/scans/0009.png"
    assert "someone" in json.dumps(parse_result(result).model_dump(mode="json"))
    public = shareable(parse_result(result))
    assert "someone" not in json.dumps(public.model_dump(mode="json"))
    assert public.changed_settings["data.path"] == "withheld"
    assert public.changed_settings["student.temperature"] == 2.0
    assert (public.candidates[2].failure, public.candidates[3].failure) == ("failed", None)
    assert [each.full_failure for each in public.tuning[1:3]] == [None, "gave no score"]
