"""The state of a run that is still at work, from its folder alone."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from knowledge_recycling.rundir import perform
from knowledge_recycling.status import status_table

STAGES = ("data", "teacher", "ensemble", "audit")


def states(run: Path) -> dict[str, str]:
    names, told = (column.cells for column in status_table(run, STAGES).columns[:2])
    return dict(zip(map(str, names), map(str, told), strict=True))


def touch(folder: Path) -> None:
    (folder / "out").touch()


def stop_after(parts: int, folder: Path) -> None:
    for number in range(parts):
        perform(folder / f"part-{number}", {}, touch)
    raise InterruptedError


def test_a_begun_stage_says_how_many_of_its_parts_are_done(tmp_path: Path) -> None:
    perform(tmp_path / "data", {}, touch)
    with suppress(InterruptedError):
        perform(tmp_path / "teacher", {}, partial(stop_after, 0))
    with suppress(InterruptedError):
        perform(tmp_path / "audit", {}, partial(stop_after, 2))
    assert states(tmp_path) == {
        "data": "done",
        "teacher": "begun",
        "ensemble": "to do",
        "audit": "begun, 2 parts done",
    }
