"""Progress of long work: a live bar on a terminal, a line per task elsewhere, or nothing."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from knowledge_recycling.errors import printable

Advance = Callable[[int], None]
"""Told the images done so far."""


class Reporter(Protocol):
    """Shows how far the tasks of a run are."""

    def task(self, label: str, total: int) -> AbstractContextManager[Advance]:
        """Opens a task of `total` images; the context gives the function to call as it goes."""

    def stage(self, name: str) -> None:
        """Says that a stage is next."""

    def warn(self, message: str) -> None:
        """Shows a sentence that the user should know."""


class SilentReporter:
    """Shows nothing: the default of the Python API."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        """Ignores the task."""
        del label, total
        yield lambda _: None

    def stage(self, name: str) -> None:
        """Ignores the stage."""

    def warn(self, message: str) -> None:
        """Passes the sentence on to Python's warnings."""
        warnings.warn(message, stacklevel=2)


class PlainReporter:
    """One line when a task ends: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        """Prints the label, the images and their rate once the task is over.

        The rate counts from the first time the task tells how far it is: it may have gone on with
        earlier work.
        """
        start = time.monotonic()
        told: list[tuple[int, float]] = []

        def advance(count: int) -> None:
            told.append((count, time.monotonic()))
            del told[1:-1]

        yield advance
        done, seconds = told[-1][0] if told else 0, time.monotonic() - start
        (before, since) = told[0] if len(told) > 1 else (0, start)
        rate = (done - before) / max(time.monotonic() - since, 1e-9)
        self._print(f"  {label}: {done} of {total} images, {seconds:.0f} s, {rate:.0f}/s")

    def stage(self, name: str) -> None:
        """Prints the name of the stage."""
        self._print(name)

    def warn(self, message: str) -> None:
        """Prints the sentence."""
        self._print(f"warning: {printable(message)}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Noted:
    """Passes all on to another reporter and notes it in a file, each line with its time."""

    def __init__(self, reporter: Reporter, file: Path) -> None:
        self.reporter = reporter
        self.file = file

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        """Notes when a task began and what was done when it ended."""
        done = [0]
        self._note(f"{label}: {total} images to do")
        try:
            with self.reporter.task(label, total) as advance:

                def both(count: int) -> None:
                    done[0] = count
                    advance(count)

                yield both
        finally:
            self._note(f"{label}: {done[0]} of {total} images done")

    def stage(self, name: str) -> None:
        """Notes the stage."""
        self._note(name)
        self.reporter.stage(name)

    def warn(self, message: str) -> None:
        """Notes the sentence."""
        self._note(f"warning: {message}")
        self.reporter.warn(message)

    def _note(self, line: str) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with (
            suppress(OSError),
            self.file.open("a", encoding="utf-8") as file,
        ):  # it must not end work
            file.write(f"{now} {printable(line)}\n")


class RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """Returns the rate of `task`, blank until it is known."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.0f} images/s", style="dim")


class LiveReporter(PlainReporter):
    """A bar with rate and time left for each open task."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        """Shows a bar while the task is open and leaves its last state on the screen."""
        columns = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(label, total=total)
            yield lambda done: progress.update(task, completed=done)


def make_reporter(console: Console, *, quiet: bool) -> Reporter:
    """Returns the reporter that suits the console."""
    if quiet:
        return SilentReporter()
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)
