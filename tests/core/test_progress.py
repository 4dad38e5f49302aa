"""The line that a task leaves in a log: what was done, how long it took, how fast it went."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from knowledge_recycling import progress
from knowledge_recycling.progress import PlainReporter


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ([(0, 0), (256, 1), (273, 2)], "sampling: 273 of 300 images, 2 s, 136/s"),
        ([(273, 2)], "sampling: 273 of 300 images, 2 s, 136/s"),
        ([(200, 1), (300, 2)], "sampling: 300 of 300 images, 2 s, 100/s"),
        ([], "sampling: 0 of 300 images, 0 s, 0/s"),
    ],
    ids=["from the beginning", "all at once", "gone on with", "nothing done"],
)
def test_rates_count_what_was_done_since_the_task_first_told(
    told: list[tuple[int, float]], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with PlainReporter(Console(file=out, width=200)).task("sampling", 300) as advance:
        for count, moment in told:
            now[0] = moment
            advance(count)
    assert out.getvalue().strip() == line
