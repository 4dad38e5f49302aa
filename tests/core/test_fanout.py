"""Parts done in other processes are those done here, and a request to stop is heard in between."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from knowledge_recycling import interruption
from knowledge_recycling.compute import ComputeConfig
from knowledge_recycling.errors import DataError
from knowledge_recycling.fanout import Workers, fan_out, num_cores, workers_for


def squared(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def refuses(number: int) -> int:
    raise DataError("no such number", where="the part", got=number)


@pytest.mark.slow
def test_processes_do_each_part_once_and_pass_errors_on_whole() -> None:
    done = list(fan_out(squared, range(6), 2))
    assert sorted(value for value, _ in done) == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {process for _, process in done}
    with pytest.raises(DataError) as caught:
        list(fan_out(refuses, [7, 7], 2))
    assert (caught.value.where, caught.value.got) == ("the part", 7)


def test_one_worker_is_this_process() -> None:
    assert list(fan_out(squared, [3, 2], 1)) == [(9, os.getpid()), (4, os.getpid())]


def test_a_request_to_stop_is_heard_between_two_parts() -> None:
    outcomes = fan_out(squared, range(5), 1)
    with interruption.answered_signals():
        assert next(outcomes) == (0, os.getpid())
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(interruption.Interrupted):
            next(outcomes)


@pytest.mark.parametrize(
    ("given", "parts", "device", "expected"),
    [
        ({"threads": 4}, 16, "cpu", Workers(4, 1)),
        ({"threads": 4, "workers": 2}, 16, "cpu", Workers(2, 2)),
        ({"threads": 4}, 1, "cpu", Workers(1, 4)),
        ({"threads": 2, "workers": 8}, 16, "cpu", Workers(8, 1)),
        ({}, 10_000, "cpu", Workers(num_cores(), 1)),
        ({}, 16, "cuda", Workers(1, None)),
    ],
)
def test_workers_share_the_threads(
    given: dict[str, int], parts: int, device: str, expected: Workers
) -> None:
    if expected.count == 1 and not given and device == "cpu":
        pytest.skip("one core")
    assert workers_for(ComputeConfig(**given), parts, torch.device(device)) == expected
