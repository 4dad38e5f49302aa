"""SIGINT and SIGTERM are answered between two steps: what was learnt is saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_requested = threading.Event()


class Interrupted(BaseException):
    """The user or the system asked the run to stop; all finished work is on disk."""


@contextmanager
def answered_signals() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into a request that `check` answers; a second one stops at once."""

    def request(number: int, frame: FrameType | None) -> None:
        if _requested.is_set():
            signal.default_int_handler(number, frame)
        _requested.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _requested.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def request() -> None:
    """Asks the run to stop, as a signal would."""
    _requested.set()


def requested() -> bool:
    """Returns whether the run has been asked to stop."""
    return _requested.is_set()


def check() -> None:
    """Stops the work here if that was asked for.

    Raises:
        Interrupted: A signal arrived.
    """
    if requested():
        raise Interrupted
