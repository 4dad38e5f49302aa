"""The simulation of a cluster against a slow one that moves a clock second by second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster import makespan, simulate


def by_the_clock(seconds: list[int], workers: int, start_up: int) -> int:
    waiting, left, clock = list(seconds), [0] * workers, start_up
    while waiting or any(left):
        for worker in range(workers):
            if left[worker] == 0 and waiting:
                left[worker] = waiting.pop(0)
        left = [max(0, each - 1) for each in left]
        clock += 1
    return clock


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 5), st.integers(0, 3))
def test_free_workers_take_the_next_part(seconds: list[int], workers: int, start_up: int) -> None:
    assert makespan(seconds, workers, start_up) == by_the_clock(seconds, workers, start_up)


def test_equal_parts_are_shared_out_evenly() -> None:
    one, eight, many = simulate([3600.0], parts=256, speed_up=4.0, start_up=0.0)
    assert (one.hours, eight.hours, many.hours) == pytest.approx((64, 8, 1))
    assert (one.busy, eight.busy, many.busy) == pytest.approx((1, 1, 1))
    assert many.speed_up == pytest.approx(64)
