"""The examples, executed as a user would: an own folder to a release, then all that use it.

What they print is held against the run, and what the documents show against the files.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

import knowledge_recycling as kr

ROOT = Path(__file__).parents[1]
SHOWN = ("use_onnx", "use_kr_load", "train_on_parquet")


def run_example(name: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "examples" / f"{name}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the example that makes a release of an own folder."""
    folder = tmp_path_factory.mktemp("example") / "work"
    told = run_example("own_folder_to_release", folder)
    for command in ("new", "check", "run", "report", "release", "verify", "predict"):
        assert f"$ kr {command}" in told
    return folder


@pytest.mark.slow
def test_an_own_folder_becomes_a_release(work: Path) -> None:
    assert kr.read_result(work / "run").audit is not None
    for page in ("report.html", "report-public.html"):
        assert (work / "run" / page).exists()
    answers = pandas.read_csv(work / "answers.csv")
    assert len(answers) == 60
    assert set(answers["class"]) <= {f"digit {number}" for number in range(10)}
    assert (work / "bundle/student.onnx").exists()


@pytest.mark.slow
def test_the_figures_of_the_audit_are_recomputed(work: Path) -> None:
    told = run_example("reading_an_audit", work / "run")
    pairs = re.findall(r"([\d.]+), reported ([\d.]+)", told)
    assert len(pairs) == 2
    for recomputed, reported in pairs:
        assert float(recomputed) == pytest.approx(float(reported), abs=2e-6)
    assert "overfitted classifier (sanity)" in told


@pytest.mark.slow
def test_the_student_is_used_without_and_with_this_package(work: Path) -> None:
    image = work / "images/digit 3/000.png"
    numbers = re.findall(r"\d[\d.e+-]*", run_example("use_onnx", work / "bundle", image))
    answers = pandas.read_csv(work / "answers.csv").set_index("file")
    expected = answers.loc["000.png"].drop("class").to_numpy(dtype=float)
    np.testing.assert_allclose([float(each) for each in numbers], expected, atol=1e-4)
    assert run_example("use_kr_load", work / "bundle").count("digit") == 2


@pytest.mark.slow
def test_a_classifier_is_trained_on_the_parquet_set(work: Path) -> None:
    told = run_example("train_on_parquet", work / "bundle")
    assert 0 <= float(told.rsplit(maxsplit=1)[-1]) <= 1  # tiny trainings: it runs, no more


@pytest.mark.parametrize("name", SHOWN)
def test_the_release_page_shows_the_example_as_it_is(name: str) -> None:
    code = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in (ROOT / "docs/release.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
