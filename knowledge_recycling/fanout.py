"""Independent parts of a stage, several at a time: each in a process with its share of the cores.

Small networks gain little from a second thread and much from a second process beside them
(`benchmarks/shadow_training.py` measures it).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from joblib import Parallel, delayed

from knowledge_recycling import interruption
from knowledge_recycling.compute import ComputeConfig

PartT = TypeVar("PartT")
OutcomeT = TypeVar("OutcomeT")


@dataclass(frozen=True)
class Workers:
    """How many parts are worked on at a time, and with how many threads each."""

    count: int
    threads: int | None
    """`None`: as torch chooses."""


def workers_for(config: ComputeConfig, parts: int, device: torch.device) -> Workers:
    """Returns the workers for so many parts: one per core on a processor, one on a GPU."""
    threads = config.threads or num_cores()
    count = config.workers or (threads if device.type == "cpu" else 1)
    count = max(1, min(count, parts))
    return Workers(count, config.threads if count == 1 else max(1, threads // count))


def num_cores() -> int:
    """Returns the cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def fan_out(
    work: Callable[[PartT], OutcomeT], parts: Sequence[PartT], workers: int
) -> Iterator[OutcomeT]:
    """Yields what `work` returns for each part, in the order in which they end.

    With several workers the parts, `work` and the outcomes travel between processes; large arrays
    are shared. A part that raises ends all.

    Raises:
        Interrupted: A signal asked to stop; parts that have begun can go on later.
    """
    if workers == 1:
        for part in parts:
            interruption.check()
            yield work(part)
        return
    pool = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered")
    for outcome in pool(delayed(_answering)(work, part) for part in parts):
        interruption.check()
        yield outcome


def _answering(work: Callable[[PartT], OutcomeT], part: PartT) -> OutcomeT:
    with interruption.answered_signals():
        return work(part)
