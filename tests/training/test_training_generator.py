"""How long a generator is trained, by the size of the set."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from knowledge_recycling.config import Facts
from knowledge_recycling.training.generator import GeneratorTraining


@pytest.mark.parametrize(
    ("num_train", "length"),
    [
        (16, 40_000),  # 20,000 x 16^(1/4)
        (256, 80_000),
        (625, 100_000),  # where both laws meet
        (2500, 200_000),  # 4,000 x 2500^(1/2)
        (10_000, 400_000),
    ],
)
def test_derived_length(make_facts: Callable[..., Facts], num_train: int, length: int) -> None:
    config = GeneratorTraining().completed(make_facts(num_train=num_train))
    assert config.images_seen == length


@pytest.mark.parametrize(
    ("candidates", "first", "shares"),
    [
        (1, 0.5, [1.0]),
        (2, 0.5, [0.5, 1.0]),
        (3, 0.5, [0.5, 0.75, 1.0]),
        (4, 0.1, [0.1, 0.4, 0.7, 1]),
    ],
)
def test_candidates_are_evenly_spaced_up_to_the_end(
    candidates: int, first: float, shares: list[float]
) -> None:
    config = GeneratorTraining(candidates=candidates, first_candidate=first)
    assert config.candidate_shares == pytest.approx(shares)
