"""Clusters of Ray and Dask: numbered parts are given to their workers, answers come as they end.

A part whose worker has died is done again by another one: both libraries see to that. Neither is
imported, and no cluster is started, before it is needed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal, NoReturn

from knowledge_recycling import interruption
from knowledge_recycling.errors import RunError
from knowledge_recycling.extras import require

TRIES = 3
"""How often workers may die over one part; with `loky`, in a row without any part being done."""
JOIN_SECONDS = 60
"""Waited for the first worker of a cluster of Dask."""


@dataclass(frozen=True)
class Workers:
    """Who works on the parts, how many at a time, and with how many threads each."""

    count: int
    threads: int | None
    """`None`: as torch chooses."""
    backend: Literal["here", "loky", "ray", "dask"]
    """`here`: this process, one part after the other."""
    address: str | None = None
    """A running cluster; `None`: one of this machine."""
    pool: int = 1
    """Workers that a cluster of this machine is started with."""
    gpus: int = 0
    """For each part."""


Numbered = tuple[int, Any]
"""A part and its position among the parts."""
Task = Callable[[Numbered], Any]
"""Does a part in a worker and answers; raises nothing."""


def on_ray(task: Task, parts: Sequence[Numbered], workers: Workers) -> Iterator[Any]:
    """Yields the answers of a cluster of Ray; each part reserves its threads and GPUs there.

    Raises:
        RunError: There is no such cluster, or workers keep dying.
        KRError: Ray is not installed.
    """
    ray = _joined_ray(workers)
    run = ray.remote(num_cpus=workers.threads or 1, num_gpus=workers.gpus, max_retries=TRIES)(_call)
    submit = partial(run.remote, ray.put(task))
    total = ray.cluster_resources()
    room = total.get("GPU", 0) if workers.gpus else total.get("CPU", 0) // (workers.threads or 1)

    def next_done(running: list[Any]) -> Wait:
        done, left = ray.wait(running)
        return Wait(done, left)

    try:
        for answer in _in_turn(parts, min(workers.count, int(room)), submit, next_done):
            yield ray.get(answer)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        give_up(str(error).partition("\n")[0])


def _call(task: Task, numbered: Numbered) -> Any:
    return task(numbered)


def on_dask(task: Task, parts: Sequence[Numbered], workers: Workers) -> Iterator[Any]:
    """Yields the answers of a cluster of Dask.

    Raises:
        RunError: There is no such cluster, or workers keep dying.
        KRError: Dask is not installed.
    """
    distributed = require("distributed", "dask")
    client = _joined_dask(distributed, workers)
    submit = partial(client.submit, task, pure=False)

    def next_done(running: list[Any]) -> Wait:
        with client.as_current():  # which `wait` asks
            done, left = distributed.wait(running, return_when="FIRST_COMPLETED")
        return Wait(list(done), list(left))

    try:
        room = len(client.nthreads())
        for answer in _in_turn(parts, min(workers.count, room), submit, next_done):
            yield answer.result()
    except distributed.KilledWorker as error:
        give_up(str(error).partition("\n")[0])


@dataclass(frozen=True)
class Wait:
    """Answers on their way, after some have come."""

    done: list[Any]
    left: list[Any]


def _in_turn(
    parts: Sequence[Numbered],
    width: int,
    submit: Callable[[Numbered], Any],
    next_done: Callable[[list[Any]], Wait],
) -> Iterator[Any]:
    """Yields the answers to all parts as they end, at most `width` under way: parts are large."""
    waiting = iter(parts)
    running = [submit(part) for part in islice(waiting, max(1, width))]
    while running:
        state = next_done(running)
        running = state.left + [submit(part) for part in islice(waiting, len(state.done))]
        yield from state.done


def give_up(got: str) -> NoReturn:
    """Ends the run after too many dead workers.

    Raises:
        RunError: Always.
    """
    raise RunError(
        "the workers that do the parts keep dying",
        expected="workers that live, with memory enough for a part each",
        got=got,
        next_step="give fewer workers (compute.workers); the same command then goes on",
    )


_clusters = ExitStack()
_dask_clients: dict[str | None, Any] = {}
"""By address."""


def close_clusters() -> None:
    """Ends the clusters that were started here and leaves those that run for themselves."""
    _dask_clients.clear()
    _clusters.close()


def _joined_ray(workers: Workers) -> Any:
    # kept for the whole process: to start one takes longer than many a part
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # they would be sent over the network
    ray = require("ray", "ray")
    if not ray.is_initialized():
        settings: dict[str, Any] = {"address": workers.address}
        if workers.address is None:
            cpus = workers.pool * (workers.threads or 1)
            settings = {"num_cpus": cpus, "include_dashboard": False, "address": "local"}
        start = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR, **settings)
        _connected(start, workers)
        _clusters.callback(ray.shutdown)
    return ray


def _joined_dask(distributed: Any, workers: Workers) -> Any:
    client = _dask_clients.get(workers.address)
    if client is None or client.status != "running":
        settings: dict[str, Any] = {"address": workers.address}
        if workers.address is None:
            settings = {
                "n_workers": workers.pool,
                "threads_per_worker": 1,
                "memory_limit": 0,  # none, as without Dask
                "dashboard_address": None,
                "silence_logs": logging.ERROR,
            }
        start = partial(distributed.Client, set_as_default=False, **settings)
        client = _dask_clients[workers.address] = _connected(start, workers)
        _clusters.callback(client.close)
        client.wait_for_workers(1, timeout=JOIN_SECONDS)
    return client


def _connected(connect: Callable[[], Any], workers: Workers) -> Any:
    try:
        with interruption.deaf_children():
            return connect()
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"there is no cluster to work with: {workers.backend} finds none",
            where="compute.address",
            expected="the address of a running one, or none",
            got=f"{workers.address}: {str(error).partition('.')[0]}",
            next_step="start it, or leave compute.address out",
        ) from error
