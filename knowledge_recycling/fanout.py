"""Independent parts of a run, several at a time: candidates, trials, shadows, the sets of a study.

A part writes a folder of its own. Any process that sees the run folder can do it, or go on with it
when its worker has died; a file tells it to stop (`interruption`). What a part gives depends, at
most, on its number of threads: not on who does it, nor when, nor beside how many others.

joblib serves this machine: small networks gain little from a second thread and much from a second
process beside them (`benchmarks/shadow_training.py` measures it). Ray and Dask serve many.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from joblib import Parallel, delayed
from joblib.externals.loky.backend import resource_tracker

from knowledge_recycling import interruption
from knowledge_recycling.clusters import (
    TRIES,
    Numbered,
    Task,
    Workers,
    give_up,
    on_dask,
    on_ray,
)
from knowledge_recycling.compute import ComputeConfig
from knowledge_recycling.storage import UNFINISHED

PartT = TypeVar("PartT")
OutcomeT = TypeVar("OutcomeT")

STOP = f".stop{UNFINISHED}"
"""Tells the workers to stop; named like an unfinished file, so that it counts as no output."""


@dataclass(frozen=True)
class Done(Generic[OutcomeT]):
    """A part that is done."""

    number: int
    """Its position among the parts."""
    outcome: OutcomeT


def workers_for(
    config: ComputeConfig, parts: int, device: torch.device, *, short: bool = False
) -> Workers:
    """Returns the workers for so many parts.

    By default one per core on a processor, and on GPUs one for each where Ray or Dask keeps them
    apart, else one; parts that are `short` are done here. A part asks for no workers of its own.
    """
    asked = config.backend != "auto" or config.workers is not None
    if _inside.locked() or (short and not asked):
        return Workers(1, config.threads, "here")
    backend = "loky" if config.backend == "auto" else config.backend
    gpus = 0 if device.type == "cpu" else 1
    if config.address is not None and backend != "loky":
        count = min(config.workers or parts, parts)
        return Workers(count, config.threads or 1, backend, config.address, gpus=gpus)
    threads = config.threads or num_cores()
    usual = threads if not gpus else 1 if backend == "loky" else torch.cuda.device_count()
    pool = config.workers or usual
    count = max(1, min(pool, parts))
    if count == 1:
        return Workers(1, config.threads, "here")
    return Workers(count, max(1, threads // count), backend, pool=pool, gpus=gpus)


def num_cores() -> int:
    """Returns the cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def fan_out(
    work: Callable[[PartT], OutcomeT], parts: Sequence[PartT], workers: Workers, folder: Path
) -> Iterator[Done[OutcomeT]]:
    """Yields what `work` returns for each part, in the order in which they end.

    With several workers the parts, `work` and the outcomes travel between processes. A part that
    raises ends all: the others save their state.

    Args:
        work: Does a part; to do it again, begun or done, must be harmless.
        parts: The parts.
        workers: Who works on them.
        folder: One that all workers see.

    Raises:
        Interrupted: A signal asked to stop; parts that have begun can go on later.
        RunError: There is no such cluster, or workers keep dying.
        KRError: The library of the backend is not installed.
    """
    if workers.backend == "here":
        for number, part in enumerate(parts):
            interruption.check()
            yield Done(number, work(part))
        return
    stop = (folder / STOP).resolve()
    with interruption.passed_on(stop):
        task = partial(_answer, work, workers.threads, stop)
        answers = BACKENDS[workers.backend](task, list(enumerate(parts)), workers)
        try:
            for answer in answers:
                if answer.error is not None:
                    raise answer.error
                if answer.done is not None:
                    yield answer.done
            interruption.check()
        finally:
            stop.touch()
            for _ in answers:  # those at work save their state and end
                pass


def in_order(
    work: Callable[[PartT], OutcomeT], parts: Sequence[PartT], workers: Workers, folder: Path
) -> list[OutcomeT]:
    """Returns what `work` returns for each part, in the order of the parts; see `fan_out`."""
    done = sorted(fan_out(work, parts, workers, folder), key=lambda each: each.number)
    return [each.outcome for each in done]


@dataclass(frozen=True)
class Answer:
    """How a part ended in a worker; if neither done nor failed, it was stopped."""

    number: int
    done: Done[Any] | None = None
    error: Exception | None = None


_inside = threading.Lock()
"""Held while this process does a part of another one. torch's global generator and its number of
threads belong to the process, so that a worker of several threads does one part after the other."""


def _answer(
    work: Callable[[Any], Any], threads: int | None, stop: Path, numbered: Numbered
) -> Answer:
    number, part = numbered
    with _inside, interruption.heard_from(stop):
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            interruption.check()
            return Answer(number, done=Done(number, work(part)))
        except interruption.Interrupted:
            return Answer(number)
        except (
            Exception
        ) as error:  # answered, not raised: each backend would wrap it in its own way
            error.add_note(traceback.format_exc())
            return Answer(number, error=error)


def _on_this_machine(task: Task, parts: Sequence[Numbered], workers: Workers) -> Iterator[Answer]:
    left, tries = dict(parts), 0
    while left:
        pool = Parallel(n_jobs=workers.count, backend="loky", return_as="generator_unordered")
        try:
            resource_tracker.ensure_running()  # to start it would let Ctrl-C through again
            with interruption.deaf_children():
                answers = pool(delayed(task)(each) for each in list(left.items()))
            for answer in answers:
                tries = 0
                del left[answer.number]
                yield answer
        except BrokenExecutor as error:  # a worker was killed, and joblib ends the others with it
            interruption.check()
            tries += 1
            if tries == TRIES:
                give_up(str(error).partition(".")[0])


BACKENDS: dict[str, Callable[[Task, Sequence[Numbered], Workers], Iterator[Answer]]] = {
    "loky": _on_this_machine,
    "ray": on_ray,
    "dask": on_dask,
}
