"""Shapes of the networks' maps: padding and cropping undo each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knowledge_recycling.models.layers import cropped_to, padded_to, pyramid_of

sides = st.integers(1, 150)


@given(sides, sides)
def test_the_finest_maps_hold_the_image_and_the_coarsest_are_small(height: int, width: int) -> None:
    pyramid = pyramid_of((1, height, width))
    assert max(pyramid.base) <= 4
    for base, side in zip(pyramid.base, (height, width), strict=True):
        assert base * pyramid.unit >= side
        assert (base - 1) * pyramid.unit < side
    assert pyramid.sides[0] == max(pyramid.base)
    assert pyramid.sides[-1] == max(pyramid.base) * pyramid.unit


@pytest.mark.parametrize(("side", "padded"), [(8, 8), (28, 32), (32, 32), (64, 64), (33, 48)])
def test_usual_sizes_need_little_padding(side: int, padded: int) -> None:
    assert pyramid_of((3, side, side)).sides[-1] == padded


@given(sides, sides, st.sampled_from([2, 8, 32]))
def test_cropping_takes_away_what_padding_added(height: int, width: int, unit: int) -> None:
    images = torch.arange(1.0, height * width + 1).view(1, 1, height, width)
    padded = padded_to(images, unit)
    assert padded.shape[2] % unit == padded.shape[3] % unit == 0
    assert torch.equal(cropped_to(padded, height, width), images)
    assert padded.sum(dtype=torch.float64) == images.sum(dtype=torch.float64)
