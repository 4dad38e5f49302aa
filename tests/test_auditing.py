"""The audit through the command line, on a tiny run: what it writes, resumes and leaves out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_end_to_end import kr_command, write_recipe

from knowledge_recycling import auditing, pipeline
from knowledge_recycling.errors import RunError
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.training.classifier import DivergedError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = write_recipe(tmp_path)
    text = re.sub(r"images_seen = \d+", "images_seen = 320", path.read_text(encoding="utf-8"))
    text = re.sub(r"trials = \d+", "trials = 1", text)
    path.write_text(text + "\n[audit]\nqueries = 2\n", encoding="utf-8")
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_an_audit_reports_every_target_and_goes_on_where_it_stopped(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert kr_command("run", recipe, "--out", out, "--quiet").returncode == 0
    assert read(out / "result.json")["audit"] is None
    told = kr_command("audit", out, "--set", "audit.shadows=8", "--quiet")
    assert told.returncode == 0, told.stderr
    assert "leaks at least" in told.stdout
    result = read(out / "result.json")
    assert result["audit"]["shadows"] == 8
    targets = {name.partition(",")[0] for name in result["privacy"]}
    assert targets == {"overfitted classifier (sanity)", "teacher", "student", "synthetic set"}
    assert "student, mislabelled canaries" in result["privacy"]

    members = dict(np.load(out / "audit/members.npz"))
    for number, row in enumerate(members["members"]):
        logits = np.load(out / f"audit/shadow-{number:03d}/signals.npz")["student"]
        assert logits.shape[:1] == (2,)
        assert logits.shape[1] > len(row), "the population stands behind the pool"
    assert "leakage was not audited" not in (out / "report.html").read_text(encoding="utf-8")

    before = {path: path.stat().st_mtime_ns for path in (out / "audit").rglob("signals.npz")}
    assert kr_command("audit", out, "--set", "audit.shadows=8", "--quiet").returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert read(out / "result.json")["privacy"] == result["privacy"]


@pytest.mark.slow
def test_a_failed_shadow_is_left_out_and_counted(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = auditing.make_shadow

    def fails_for_two(*arguments: Any) -> None:
        if arguments[3] == 2:
            raise DivergedError("the training of the teacher diverged")
        made(*arguments)

    monkeypatch.setattr(auditing, "make_shadow", fails_for_two)
    overrides = ["audit.shadows=8", 'audit.mode="classifier"']
    result = pipeline.run(Recipe.load(recipe, overrides), tmp_path / "run")
    assert result is not None
    assert result.audit is not None
    assert (result.audit.shadows, result.audit.failed_shadows) == (7, 1)
    assert result.audit.mode == "classifier"
    assert not any(name.startswith("student") for name in result.privacy)


def test_a_folder_without_a_run_cannot_be_audited(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run in this folder"):
        pipeline.audit(tmp_path / "nothing")
