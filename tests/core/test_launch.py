"""Two processes learn what one learns; a group that loses a member ends, and says so.

The same few steps are done by one process and by two, at equal batches: all losses, and what the
averaged model answers after each step, must agree within `TOLERANCE`, in fp32.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from group import CPU, NETWORKS, fall, learn_all, learn_flow
from lightning_fabric import Fabric

from knowledge_recycling.errors import RunError
from knowledge_recycling.interruption import Interrupted, answered_signals
from knowledge_recycling.launch import launch
from knowledge_recycling.progress import Advance, SilentReporter
from knowledge_recycling.storage import read_json
from knowledge_recycling.training.loop import Record

TOLERANCE = dict.fromkeys(NETWORKS, 1e-05) | {"timm": 1e-3}
"""Absolute and relative. timm's network magnifies a difference in the last bit tenfold each step,
since its last batch normalisations see 8 numbers each; after the first step it is below 1e-7."""


@pytest.fixture(autouse=True, scope="module")
def _in_time() -> Iterator[None]:
    """Nothing here can hang."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError("a group of processes did not end")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(900)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Remembering(SilentReporter):
    def __init__(self) -> None:
        self.heard: list[object] = []

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        self.heard.append((label, total))
        yield self.heard.append
        self.heard.append("closed")

    def warn(self, message: str) -> None:
        self.heard.append(message)


REPORTER = Remembering()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, fabric: Fabric) -> tuple[Path, Path]:
    """What one process and what two have learnt."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    learn_all(one, fabric, Remembering())
    launch(partial(learn_all, two), CPU, devices=2, reporter=REPORTER, where=two)
    return one, two


def records(folder: Path) -> list[Record]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rate = "images_per_second"
    return [{k: v for k, v in json.loads(line).items() if k != rate} for line in lines]


def assert_close(folder: Path, expected: Path, tolerance: float) -> None:
    ours, theirs = records(folder), records(expected)
    assert len(ours) == len(theirs) > 0
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one.keys() == other.keys()
        values = [np.array(list(each.values())) for each in (one, other)]
        np.testing.assert_allclose(*values, tolerance, tolerance, err_msg=f"step {step}")


@pytest.mark.parametrize("kind", NETWORKS)
def test_two_processes_learn_what_one_learns(kind: str, folders: tuple[Path, Path]) -> None:
    one, two = folders
    assert_close(two / kind, one / kind, TOLERANCE[kind])
    first, last = records(one / kind)[0], records(one / kind)[-1]
    assert any(abs(last[key] - first[key]) > 0.01 for key in first if key.startswith("answer"))


def test_two_processes_distil_what_one_does(folders: tuple[Path, Path]) -> None:
    one, two = (read_json(folder / "student/told.json") for folder in folders)
    assert one == two > 27  # a set was drawn anew
    assert_close(folders[1] / "student", folders[0] / "student", TOLERANCE["resnet"])


def test_the_first_process_reports_through_the_launching_one(folders: tuple[Path, Path]) -> None:
    steps = list(range(1, len(NETWORKS) + 1))
    expected = [("everything", len(NETWORKS)), *steps, "closed", "that was all"]
    assert REPORTER.heard == expected


def test_a_state_of_two_goes_on_in_one_and_the_reverse(
    folders: tuple[Path, Path], tmp_path: Path, fabric: Fabric
) -> None:
    begun_by_two, begun_by_one = tmp_path / "two", tmp_path / "one"
    with answered_signals(), pytest.raises(Interrupted):
        launch(partial(learn_flow, begun_by_two, 3), CPU, devices=2, **surroundings(tmp_path))
    learn_flow(begun_by_two, None, fabric, SilentReporter())
    with answered_signals(), pytest.raises(Interrupted):
        learn_flow(begun_by_one, 3, fabric, SilentReporter())
    launch(partial(learn_flow, begun_by_one, None), CPU, devices=2, **surroundings(tmp_path))
    for folder in (begun_by_two, begun_by_one):
        assert_close(folder, folders[0] / "flow", TOLERANCE["flow"])


def surroundings(where: Path) -> dict[str, object]:
    return {"reporter": SilentReporter(), "where": where}


def test_a_killed_process_ends_all_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="was ended") as caught:
        launch(partial(fall, "killed"), CPU, devices=2, **surroundings(tmp_path))
    assert caught.value.got == "SIGKILL in process 2 of 2"
    assert "go on with the same command" in str(caught.value)


def test_an_error_of_any_process_ends_all_and_is_shown(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: of the second process"):
        launch(partial(fall, "error"), CPU, devices=2, **surroundings(tmp_path))
