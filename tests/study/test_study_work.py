"""A tiny study on digits through the real command line: stopped twice, it ends with the same table.

Its numbers are recomputed from the predictions that the runs stored.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, roc_auc_score
from test_end_to_end import KR, ROOT, kr_command

from knowledge_recycling import pipeline
from knowledge_recycling.errors import RunError
from knowledge_recycling.pipeline import given_recipe
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.reporting.reading import read_result
from knowledge_recycling.study import work
from knowledge_recycling.study.plan import Row, Study
from knowledge_recycling.study.run import listing, run_study

STUDY = """
seeds = [0, 1]
settings = [
  "teacher.classifier.width=8",
  "teacher.training.images_seen=3200",
  "teacher.training.snapshots=2",
  "generator.width=8",
  "generator_training.images_seen=320",
  "generator_training.candidates=2",
  "tuning.trials=2",
  "student.training.images_seen=640",
  "student.training.snapshots=2",
  "student.synthesis.set_size=0.2",
  "student.synthesis.period=0",
  "evaluation.resamples=100",
  "evaluation.quality_images=60",
  "evaluation.grid_images=2",
  "compute={accelerator='cpu', precision='32-true', threads=1}",
]

[sets.digits.data]
kind = "digits"

[[rows]]
name = "real"
model = "teacher"

[[rows]]
name = "GKD"
candidate = "last"
knobs = "default"

[[rows]]
name = "whole method"

[[rows]]
name = "hard labels"
settings = ["student.hard_weight=1.0"]

[[rows]]
name = "picked on test"
candidate = "test-selected"

[[rows]]
name = "wider generator"
settings = ["generator.width=16"]
"""
TABLES = ("table.md", "table.csv", "table.json")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The study's file, and the folder in which it was done without a stop."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.toml").write_text(STUDY)
    run_study(Study.load(folder / "tiny.toml"), folder / "out")
    return folder / "tiny.toml", folder / "out"


def cells_of(out: Path) -> dict[tuple[int, str], dict[str, Any]]:
    cells = json.loads((out / "table.json").read_text())["cells"]
    return {(cell["seed"], cell["row"]): cell for cell in cells}


def stopped(study: Path, out: Path, once: Path, signal_number: int) -> int:
    """Stops the study when the file `once` is there; returns the exit code."""
    process = subprocess.Popen(
        [*KR, "study", str(study), "--out", str(out), "-q"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    deadline = time.monotonic() + 200
    while not once.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal_number)
    return process.wait(timeout=100)


@pytest.mark.slow
def test_a_stopped_study_ends_with_the_same_table(
    straight: tuple[Path, Path], tmp_path: Path
) -> None:
    study, done = straight
    out = tmp_path / "out"
    first = kr_command("study", study, "--out", out, "--dry-run").stdout.splitlines()
    assert len(first) == 12
    assert all(line.startswith("to do") for line in first)
    assert not out.exists()

    second_run = out / "digits/seed-0/run-students"
    assert stopped(study, out, second_run, signal.SIGINT) == 75
    assert stopped(study, out, out / "digits/seed-1/run/generator", signal.SIGKILL) == -9
    assert not (out / "digits/seed-1/run/result.json").exists()
    halfway = kr_command("study", study, "--out", out, "--dry-run").stdout
    assert halfway.count("done") == halfway.count("to do") == 6
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed-0/run/*/done.json")}

    process = kr_command("study", study, "--out", out, "-q")
    assert process.returncode == 0, process.stderr
    assert (done / "table.md").read_text().strip() in process.stdout
    for name in TABLES:
        assert (out / name).read_bytes() == (done / name).read_bytes()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert listing(Study.load(study), out).count("done") == 12


@pytest.mark.slow
def test_the_table_is_what_the_runs_predicted(straight: tuple[Path, Path]) -> None:
    _, out = straight
    cells = cells_of(out)
    gaps = []
    for seed in (0, 1):
        predicted = np.load(out / f"digits/seed-{seed}/run/evaluation/predictions.npz")
        labels, by = predicted["test_labels"], {}
        for row, who in (("real", "teacher"), ("whole method", "student")):
            chances = predicted[f"test_{who}"]
            by[row] = accuracy_score(labels, chances.argmax(axis=1))
            assert cells[seed, row]["test"]["accuracy"] == pytest.approx(by[row])
            auroc = roc_auc_score(labels, chances, multi_class="ovr", average="macro")
            assert cells[seed, row]["test"]["auroc"] == pytest.approx(auroc)
        gaps.append(100 * (by["whole method"] - by["real"]))
    lines = json.loads((out / "table.json").read_text())["lines"]
    (line,) = (line for line in lines if line["row"] == "whole method")
    measured = line["measures"]["gap, pp"]
    low, high = stats.t.interval(0.95, 1, np.mean(gaps), stats.sem(gaps))
    assert measured == pytest.approx({"mean": np.mean(gaps), "low": low, "high": high, "n": 2})


@pytest.mark.slow
def test_rows_that_come_to_the_same_share_a_student_and_runs_share_stages(
    straight: tuple[Path, Path],
) -> None:
    _, out = straight
    cells = cells_of(out)
    for seed in (0, 1):
        tried = cells[seed, "picked on test"]["test_accuracy_of_candidates"]
        assert len(tried) == 2
        assert cells[seed, "picked on test"]["test"]["accuracy"] == max(tried.values())
        students = list((out / f"digits/seed-{seed}/run-students").iterdir())
        assert 1 <= len(students) <= 3, "the run's own student is not trained again"
        (wide,) = (out / f"digits/seed-{seed}").glob("run-*/teacher")
        plain = out / f"digits/seed-{seed}/run/teacher"
        assert (wide / "done.json").read_bytes() == (plain / "done.json").read_bytes()
        generators = [each.parent / "generator/done.json" for each in (wide, plain)]
        assert generators[0].read_bytes() != generators[1].read_bytes()


@pytest.mark.slow
def test_the_students_of_a_study_are_rows_of_its_runs(
    straight: tuple[Path, Path], tmp_path: Path
) -> None:
    _, out = straight
    cells = cells_of(out)
    run = tmp_path / "run"
    shutil.copytree(out / "digits/seed-0/run", run)
    names = ["GKD", "whole method", "hard labels", "picked on test [test-selected]"]
    rows = {row.name: row for row in read_result(run).rows}
    assert list(rows) == names
    for name, row in rows.items():
        cell = cells[0, name.removesuffix(" [test-selected]")]
        for split in ("test", "val"):
            assert getattr(row, split).accuracy.value == cell[split]["accuracy"]
    assert rows["whole method"].test.accuracy == read_result(run).student.test.accuracy
    assert all(name in (run / "report.html").read_text() for name in names)

    pipeline.run(given_recipe(run), run)
    assert [row.name for row in read_result(run).rows] == names, "kr run keeps them"
    kept = json.loads((run / "rows.json").read_text())
    (run / "rows.json").write_text(json.dumps(kept | {"evaluation": "another"}))
    pipeline.run(given_recipe(run), run)
    assert read_result(run).rows == (), "rows of another evaluation"


@pytest.mark.slow
def test_seeds_in_processes_of_their_own_give_the_same_table(
    straight: tuple[Path, Path], tmp_path: Path
) -> None:
    study, done = straight
    process = kr_command("study", study, "--out", tmp_path / "out", "-q", "--workers", "2")
    assert process.returncode == 0, process.stderr
    for name in TABLES:
        assert (tmp_path / "out" / name).read_bytes() == (done / name).read_bytes()


def test_a_mistake_in_the_study_ends_with_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(STUDY.replace("model =", "modle ="))
    process = kr_command("study", tmp_path / "bad.toml", "--out", tmp_path / "out")
    assert process.returncode == 2
    assert "did you mean 'model'?" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists()


def small_study() -> Study:
    rows = (Row(name="a"), Row(name="b", settings=("student.hard_weight=1.0",)))
    wide = Row(name="c", settings=("generator.width=16",))
    return Study(sets={"s": {"data": {"kind": "digits"}}}, seeds=(0, 1), rows=(*rows, wide))


def test_a_failed_part_stops_no_other_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = True

    def finished_run(study: Study, cell: Any, out: Path, reporter: Any) -> Any:
        if broken and cell.seed == 1 and cell.row.name == "c":
            raise RunError("the run is broken")
        return cell

    half = {name: {"value": 0.5} for name in work.METRICS}
    utility = {"test": half, "val": half}
    shown: dict[tuple[int, str], list[str]] = {}

    def measured(study: Study, cell: Any, run: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if broken and cell.seed == 0 and cell.row.name == "b":
            raise RunError("the student is broken")
        return utility, {}

    def show_rows(study: Study, cell: Any, run: Any, rows: list[dict[str, Any]]) -> None:
        shown[cell.seed, cell.run_folder] = [row["name"] for row in rows]

    monkeypatch.setattr(work, "finished_run", finished_run)
    monkeypatch.setattr(work, "measured", measured)
    monkeypatch.setattr(work, "evaluated", lambda run, who: utility)
    monkeypatch.setattr(work, "show_rows", show_rows)
    study = small_study()
    text = run_study(study, tmp_path)
    assert "1; seed 0 failed: the student is broken" in text
    assert "1; seed 1 failed: the run is broken" in text
    states = [line.split()[0] for line in listing(study, tmp_path).splitlines()]
    assert states == ["done", "failed", "done", "done", "done", "failed"]
    assert sorted(shown.values()) == [["a"], ["a", "b"], ["c"]]
    broken = False
    assert "failed" not in run_study(study, tmp_path, reporter=SilentReporter())
    assert listing(study, tmp_path).count("done") == 6
    assert len(json.loads((tmp_path / "table.json").read_text())["cells"]) == 6


def test_the_table_is_written_whenever_a_set_is_done_with_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "finished_run", lambda study, cell, out, reporter: cell)
    monkeypatch.setattr(work, "show_rows", lambda study, cell, run, rows: None)

    def measured(study: Study, cell: Any, run: Any) -> dict[str, Any]:
        raise RunError("broken")

    monkeypatch.setattr(work, "measured", measured)
    seen: list[int] = []
    work.perform_study(
        small_study(), tmp_path, SilentReporter(), lambda outcomes: seen.append(len(outcomes))
    )
    assert seen == [3, 6]
