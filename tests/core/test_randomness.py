"""Named streams: SHA-256 computed by hand, other processes, and the global generators untouched."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from knowledge_recycling.randomness import named_seed, numpy_rng, rng

NAMES = st.lists(st.text(max_size=8) | st.integers(), max_size=4)


def test_the_seed_is_the_start_of_a_sha256() -> None:
    text = "int:7/str:student/int:3"
    expected = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) // 2
    assert named_seed(7, "student", 3) == expected


@given(st.integers(min_value=0), NAMES)
def test_seeds_suit_every_generator(seed: int, names: list[str | int]) -> None:
    assert 0 <= named_seed(seed, *names) < 2**63
    assert rng(seed, *names).initial_seed() == named_seed(seed, *names)


def test_streams_differ_by_seed_name_type_and_place() -> None:
    streams = [
        (0,), (1,), (0, "a"), (0, "b"), (0, 1), (0, "1"), (0, "a", 1), (0, 1, "a"), (0, "a", 2)
    ]  # fmt: skip
    seeds = {named_seed(seed, *names) for seed, *names in streams}
    firsts = {numpy_rng(seed, *names).random() for seed, *names in streams}
    draws = {float(torch.rand(1, generator=rng(seed, *names))) for seed, *names in streams}
    assert len(seeds) == len(firsts) == len(draws) == len(streams)


def test_neighbouring_streams_are_uncorrelated() -> None:
    draws = np.stack([numpy_rng(0, "step", i).standard_normal(4000) for i in range(8)])
    correlations = np.corrcoef(draws) - np.eye(8)
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    code = (
        "from knowledge_recycling.randomness import *;"
        "print(named_seed(3, 'a', 5), numpy_rng(3, 'a').integers(2**40), hash('a'))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seed, drawn, hashed = map(int, done.stdout.split())
    assert hashed != hash("a"), "the two processes hash alike: nothing is tested"
    assert (seed, drawn) == (named_seed(3, "a", 5), numpy_rng(3, "a").integers(2**40))


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    torch.rand(3, generator=rng(0, "a"))
    numpy_rng(0, "a").random(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()
