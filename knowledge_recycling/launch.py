"""Starts the processes that train one model together, watches them, and ends them.

They are forked from a server that has imported the package and done nothing else, since a process
that has used a GPU or threads cannot be forked. Signals reach the launching process alone: it asks
the first one to stop. Who ends before its work is done ends all, so that nobody waits for ever.
What they tell travels through a pipe between processes of one run; nothing of it is read from a
file.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from lightning_fabric import Fabric

from knowledge_recycling import interruption, ranks
from knowledge_recycling.compute import ComputeConfig, make_fabric
from knowledge_recycling.errors import KRError, RunError
from knowledge_recycling.fanout import num_cores
from knowledge_recycling.interruption import Interrupted
from knowledge_recycling.progress import Advance, Reporter, SilentReporter

Work = Callable[[Fabric, Reporter], None]
"""What each process does; it travels to them."""

IMPORTED = "knowledge_recycling.stages"
"""What the server imports once, so that its processes start at once."""
HELD = (signal.SIGINT, signal.SIGTERM)
"""Signals for the launching process alone."""
POLL_SECONDS = 0.2
"""How often the launching process looks whether it has been asked to stop."""
GRACE_SECONDS = 2.0
"""For the others to end after one has failed, so that the first cause is found."""


@dataclass(frozen=True)
class Told:
    """What the first process has its reporter say, said by that of the launching one."""

    what: Literal["open", "advance", "close", "warn"]
    task: int = 0
    label: str = ""
    images: int = 0


@dataclass(frozen=True)
class Over:
    """How the work of a process ended."""

    error: KRError | Interrupted | None = None
    trace: str | None = None
    """Of an error that is no user's."""


@dataclass(frozen=True)
class Member:
    """One of the processes, as the launching one sees it."""

    process: BaseProcess
    pipe: Connection


def launch(
    work: Work, compute: ComputeConfig, *, devices: int, reporter: Reporter, where: Path
) -> None:
    """Does `work` in as many processes as `devices`, each with its share of the threads.

    Args:
        work: What each does, with a fabric of its own.
        compute: Accelerator and precision.
        devices: Number of processes.
        reporter: Told what the first process tells.
        where: Folder of the work, named in errors.

    Raises:
        KRError: What one of them raised; a RunError if one was killed.
        Interrupted: A signal asked to stop; the state has been saved.
    """
    threads = compute.threads or max(1, num_cores() // devices)
    compute = compute.model_copy(update={"threads": threads})
    with TemporaryDirectory(prefix="knowledge-recycling-") as folder:
        serve = partial(_serve, devices, Path(folder) / "meeting", compute, work)
        members: list[Member] = []
        try:
            with _signals_held_back():
                for index in range(devices):
                    members.append(_started(serve, index))
            _watch(members, reporter, where)
        finally:
            # the first has written everything, or nobody can go on
            for each in members:
                each.process.kill()
                each.process.join()
                each.pipe.close()


def _started(serve: Callable[[int, Connection], None], index: int) -> Member:
    context = get_context("forkserver")
    context.set_forkserver_preload([IMPORTED])
    pipe, other_end = context.Pipe()
    process = context.Process(target=serve, args=(index, other_end))
    process.start()
    other_end.close()  # so that the pipe breaks when the process ends
    return Member(process, pipe)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Keeps `HELD` from the server if it starts within: it inherits what is blocked."""
    resource_tracker.ensure_running()  # starting it would end the blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(
    count: int, meeting: Path, compute: ComputeConfig, work: Work, index: int, pipe: Connection
) -> None:
    """The life of one of the processes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    threading.Thread(target=_obey, args=(pipe,), daemon=True).start()
    warnings.simplefilter("ignore")  # the launching process has seen the same images and warned
    try:
        ranks.join(index, count, meeting)
        os.environ["LOCAL_RANK"] = str(index)  # by which fabric finds the device
        fabric = make_fabric(compute, devices=count)
        with ranks.GlobalBatchNorm():
            work(fabric, Relay(pipe) if index == 0 else SilentReporter())
    except (KRError, Interrupted) as error:
        pipe.send(Over(error))
    except Exception:
        pipe.send(Over(trace=traceback.format_exc()))
    else:
        pipe.send(Over())
    threading.Event().wait()  # until it is ended: others may still hear from this one


def _obey(pipe: Connection) -> None:
    """Passes on a request to stop; ends the process when the launching one is gone."""
    with suppress(EOFError, OSError):
        while pipe.recv():
            interruption.request()
    os._exit(1)


class Relay(SilentReporter):
    """Reporter of the first process."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.numbers = itertools.count()

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        """Opens the task over there."""
        number = next(self.numbers)
        self.pipe.send(Told("open", number, label, total))
        yield lambda done: self.pipe.send(Told("advance", number, images=done))
        self.pipe.send(Told("close", number))

    def warn(self, message: str) -> None:
        """Warns over there."""
        self.pipe.send(Told("warn", label=message))


class Said:
    """The other end of `Relay`: has `reporter` say what is told."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.open: dict[int, tuple[ExitStack, Advance]] = {}

    def __call__(self, told: Told) -> None:
        """Says it."""
        if told.what == "warn":
            self.reporter.warn(told.label)
        elif told.what == "open":
            stack = ExitStack()
            task = self.reporter.task(told.label, told.images)
            self.open[told.task] = stack, stack.enter_context(task)
        elif told.what == "advance":
            self.open[told.task][1](told.images)
        else:
            self.open.pop(told.task)[0].close()

    def close(self) -> None:
        """Closes tasks that the process did not live to close, the innermost first."""
        while self.open:
            self.open.popitem()[1][0].close()


def _watch(members: list[Member], reporter: Reporter, where: Path) -> None:
    """Returns when the first process has done its work.

    Raises:
        KRError: As `launch`.
        Interrupted: As `launch`.
    """
    said, asked = Said(reporter), False
    with ExitStack() as stack:
        stack.callback(said.close)
        while True:
            if interruption.requested() and not asked:
                asked = True
                with suppress(OSError):  # it may have ended
                    members[0].pipe.send(True)
            for pipe in wait([each.pipe for each in members], timeout=POLL_SECONDS):
                index = next(i for i, each in enumerate(members) if each.pipe is pipe)
                message = _heard(members[index])
                if isinstance(message, Told):
                    said(message)
                elif message.error is not None:
                    raise message.error
                elif message.trace is not None:
                    raise _failure(members, index, message.trace, where)
                elif index == 0:
                    return


def _heard(member: Member) -> Any:
    try:
        return member.pipe.recv()
    except (EOFError, OSError):
        return Over(trace="it ended without a word")


def _failure(members: list[Member], index: int, trace: str, where: Path) -> Exception:
    """Returns the error of a process that failed, or of the one whose end was the cause."""
    gone = wait([each.process.sentinel for each in members], timeout=GRACE_SECONDS)
    for number, each in enumerate(members):
        if each.process.sentinel in gone:
            each.process.join()
            code = each.process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return RunError(
                "one of the processes that train together was ended",
                where=where,
                got=f"{name} in process {number + 1} of {len(members)}",
                next_step="look whether memory ran out or someone ended it; what was learnt is "
                "saved: go on with the same command",
            )
    return RuntimeError(f"in process {index + 1} of {len(members)}:\n{trace}")
