"""SIGINT and SIGTERM are answered between two steps: what was learnt is saved first.

A process that has given work to others passes the request on by a file, since a signal reaches no
other machine and the file system of the run does.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType

LOOK_SECONDS = 0.5
"""How often a worker looks for the file, at most: a step may take less than a look at it."""

_requested = threading.Event()
_written_on_request: list[Path] = []


class Interrupted(BaseException):
    """The user or the system asked the run to stop; all finished work is on disk."""


@contextmanager
def answered_signals() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into a request that `check` answers; a second one stops at once."""

    def answer(number: int, frame: FrameType | None) -> None:
        if _requested.is_set():
            signal.default_int_handler(number, frame)
        request()

    before = {number: signal.signal(number, answer) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _requested.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def request() -> None:
    """Asks the run to stop, as a signal would, and those who work for it."""
    _requested.set()
    for file in _written_on_request:
        file.touch()


@contextmanager
def passed_on(file: Path) -> Iterator[None]:
    """Writes `file` when the run is asked to stop; it is removed at the end."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)  # of a process that was killed
    _written_on_request.append(file)
    try:
        yield
    finally:
        _written_on_request.remove(file)
        file.unlink(missing_ok=True)


@dataclass
class _Watch:
    """The file that a worker looks for."""

    file: Path | None
    next_look: float = 0.0
    seen: bool = False

    def sees_it(self) -> bool:
        """Returns whether the file has been there, as of a moment ago."""
        if self.file is not None and time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + LOOK_SECONDS
            self.seen = self.seen or self.file.exists()
        return self.seen


_watches = [_Watch(None)]


@contextmanager
def heard_from(file: Path) -> Iterator[None]:
    """Takes the existence of `file` for a request to stop, in a worker of another process."""
    _watches.append(_Watch(file))
    try:
        yield
    finally:
        _watches.pop()


@contextmanager
def deaf_children() -> Iterator[None]:
    """Keeps Ctrl-C from the processes started meanwhile: they stop when this one says so.

    A terminal sends it to all; each would end with a traceback of its own.
    """
    resource_tracker.ensure_running()  # to start it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def requested() -> bool:
    """Returns whether the run has been asked to stop."""
    return _requested.is_set() or _watches[-1].sees_it()


def check() -> None:
    """Stops the work here if that was asked for.

    Raises:
        Interrupted: A signal arrived.
    """
    if requested():
        raise Interrupted
