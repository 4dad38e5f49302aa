"""Parts done in other processes are those done here, whatever dies; a stop reaches all."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from knowledge_recycling import interruption
from knowledge_recycling.compute import ComputeConfig
from knowledge_recycling.errors import DataError, RunError
from knowledge_recycling.fanout import Done, Workers, fan_out, in_order, num_cores, workers_for

HERE, TWO = Workers(1, None, "here"), Workers(2, 1, "loky")


def squared(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def refuses(number: int) -> int:
    raise DataError("no such number", where="the part", got=number)


def dies_in(part: Path) -> int:
    """Kills its worker if nobody has died of this part yet."""
    mark = part.with_suffix(".died")
    if part.name == "2" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return int(part.name)


def always_dies(part: int) -> int:
    if part == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return part


def works_until_stopped(part: Path) -> None:
    """Says that it has begun, and, if it is stopped, that it has saved its state."""
    part.touch()
    for _ in range(600):
        time.sleep(0.05)
        if interruption.requested():
            part.with_suffix(".saved").touch()
            interruption.check()


def wants_more(part: int) -> Workers:
    return workers_for(ComputeConfig(workers=8, backend="ray"), 8, torch.device("cpu"))


@pytest.mark.slow
def test_processes_do_each_part_once_and_pass_errors_on_whole(tmp_path: Path) -> None:
    done = in_order(squared, range(6), TWO, tmp_path)
    assert [value for value, _ in done] == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {process for _, process in done}
    with pytest.raises(DataError) as caught:
        in_order(refuses, [7, 7], TWO, tmp_path)
    assert (caught.value.where, caught.value.got) == ("the part", 7)
    assert in_order(wants_more, [0, 1], TWO, tmp_path) == [HERE, HERE], "a part has no workers"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_worker_costs_no_part(tmp_path: Path) -> None:
    parts = [tmp_path / str(number) for number in range(6)]
    assert in_order(dies_in, parts, TWO, tmp_path) == list(range(6))
    assert (tmp_path / "2.died").exists()


@pytest.mark.slow
def test_workers_that_keep_dying_end_the_run_with_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="keep dying") as caught:
        in_order(always_dies, range(3), TWO, tmp_path)
    assert "compute.workers" in str(caught.value)


@pytest.mark.slow
def test_a_request_to_stop_reaches_the_workers_who_save_their_state(tmp_path: Path) -> None:
    parts = [tmp_path / str(number) for number in range(8)]

    def stop() -> None:
        while not all(each.exists() for each in parts[:2]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=stop)
    with interruption.answered_signals():
        stopper.start()
        with pytest.raises(interruption.Interrupted):
            in_order(works_until_stopped, parts, TWO, tmp_path)
        stopper.join()
    begun = {each.name for each in tmp_path.iterdir()}
    assert begun == {"0", "1", "0.saved", "1.saved"}, "no part was begun after the request"


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    done = list(fan_out(squared, [3, 2], HERE, tmp_path))
    assert done == [Done(0, (9, os.getpid())), Done(1, (4, os.getpid()))]


def test_a_request_to_stop_is_heard_between_two_parts(tmp_path: Path) -> None:
    outcomes = fan_out(squared, range(5), HERE, tmp_path)
    with interruption.answered_signals():
        assert next(outcomes).outcome == (0, os.getpid())
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(interruption.Interrupted):
            next(outcomes)


@pytest.mark.parametrize(
    ("given", "parts", "device", "expected"),
    [
        ({"threads": 4}, 16, "cpu", Workers(4, 1, "loky", pool=4)),
        ({"threads": 4, "workers": 2}, 16, "cpu", Workers(2, 2, "loky", pool=2)),
        ({"threads": 4}, 1, "cpu", Workers(1, 4, "here")),
        ({"threads": 2, "workers": 8}, 16, "cpu", Workers(8, 1, "loky", pool=8)),
        ({"threads": 4, "backend": "ray"}, 2, "cpu", Workers(2, 2, "ray", pool=4)),
        ({"backend": "ray", "address": "a"}, 9, "cpu", Workers(9, 1, "ray", "a")),
        (
            {"backend": "dask", "address": "a", "workers": 3, "threads": 4},
            9,
            "cpu",
            Workers(3, 4, "dask", "a"),
        ),
        ({}, 10_000, "cpu", Workers(num_cores(), 1, "loky", pool=num_cores())),
        ({}, 16, "cuda", Workers(1, None, "here")),
        ({"backend": "ray", "address": "a"}, 9, "cuda", Workers(9, 1, "ray", "a", gpus=1)),
    ],
)
def test_workers_share_the_threads(
    given: dict[str, object], parts: int, device: str, expected: Workers
) -> None:
    if expected.count == 1 and not given and device == "cpu":
        pytest.skip("one core")
    assert workers_for(ComputeConfig(**given), parts, torch.device(device)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"threads": 4}, Workers(1, 4, "here")),
        ({"threads": 4, "workers": 2}, Workers(2, 2, "loky", pool=2)),
        ({"threads": 4, "backend": "dask"}, Workers(4, 1, "dask", pool=4)),
    ],
)
def test_short_parts_are_done_here_unless_workers_are_asked_for(
    given: dict[str, object], expected: Workers
) -> None:
    config = ComputeConfig(**given)  # type: ignore[arg-type]
    assert workers_for(config, 16, torch.device("cpu"), short=True) == expected
