"""Killed runs go on to the same bits; a run folder has one process at a time."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from benchmarks.kills import (
    FAILED,
    Tally,
    at_work,
    compared,
    disturb,
    ended,
    last_words,
    tiny_recipe,
    undisturbed,
)
from knowledge_recycling.storage import write_json

pytestmark = pytest.mark.slow


def test_killed_runs_end_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    reference = undisturbed(tiny_recipe(tmp_path), tmp_path / "reference")
    dice, tally = random.Random(3), Tally()  # noqa: S311  (no secret)
    while tally.kills < 8:
        disturb(reference, tmp_path / f"run-{tally.trials}", dice, tally)
    assert not tally.different
    assert len(tally.in_stage) > 1


def test_the_comparison_sees_a_difference(tmp_path: Path) -> None:
    reference = undisturbed(tiny_recipe(tmp_path), tmp_path / "reference")
    other = undisturbed(tiny_recipe(tmp_path, seed=1), tmp_path / "other")
    different = compared(other.folder, reference.folder)
    assert "teacher/weights.safetensors" in different
    assert "result.json: gap" in different or "result.json: teacher" in different
    write_json(other.folder / "result.json", {})
    assert "result.json: student" in compared(other.folder, reference.folder)


def test_a_second_process_refuses_and_the_first_goes_on(tmp_path: Path) -> None:
    recipe, run = tiny_recipe(tmp_path), tmp_path / "run"
    first = at_work(recipe, run)
    while not (run / "teacher/begun.json").exists():
        time.sleep(0.01)
    assert first.pid
    os.kill(first.pid, signal.SIGSTOP)  # it holds the folder while the second looks
    assert ended(at_work(recipe, run)) == FAILED
    assert "another process works on this run folder" in last_words(run)
    os.kill(first.pid, signal.SIGCONT)
    assert ended(first) == 0
    reference = undisturbed(recipe, tmp_path / "reference")
    assert compared(run, reference.folder) == []
