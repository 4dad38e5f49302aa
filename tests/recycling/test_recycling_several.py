"""Synthetic sets of several generators: equal shares, and every image as its generator alone draws.

A whole run with a second generator is made by the stages themselves; what it shares with the run of
its first generator alone must be the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_end_to_end import weights, write_recipe
from torch import Tensor, nn

import knowledge_recycling as kr
from knowledge_recycling import pipeline
from knowledge_recycling.context import Context
from knowledge_recycling.interruption import Interrupted
from knowledge_recycling.recycling import synthesis
from knowledge_recycling.recycling.filtering import FilterConfig
from knowledge_recycling.recycling.synthesis import (
    Source,
    draw_owners,
    draw_set,
    mixed,
    open_set,
)

SHAPE = (1, 4, 4)
NUM_GENERATORS = 3
TINY = [
    "teacher.training.images_seen=160",
    "generator_training.images_seen=160",
    "student.training.images_seen=160",
    "tuning.knobs=['guidance', 'hard_weight']",
]


class Brush(nn.Module):
    """Paints its number into the left column, times the knob, and noise of the seed elsewhere."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def sample(self, labels: Tensor, seeds: Tensor, knobs: Any) -> Tensor:
        generators = [torch.Generator().manual_seed(s) for s in seeds.tolist()]
        noise = [torch.rand(SHAPE, generator=each) for each in generators]
        images = torch.stack(noise) - labels[:, None, None, None] * 0.5
        images[..., 0] = self.number * knobs["strength"]
        return images


class Moody(nn.Module):
    """A teacher that recognises an image or not by its noise."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 0, 0, 1] - 0.3, 0.3 - images[:, 0, 0, 1]], dim=1)


def source_of(number: int, **changes: Any) -> Source:
    knobs = {"strength": 0.25 * (number + 1)}
    parts = {"filter": None, "teacher": Moody()} | changes
    return Source(Brush(number), knobs, ("a", "b"), np.array([0.3, 0.7]), **parts)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(1, 5), st.integers(0, 9))
def test_each_class_is_shared_equally(labels: list[int], num_generators: int, seed: int) -> None:
    drawn = np.array(labels)
    owners = draw_owners(drawn, num_generators, np.random.default_rng(seed))
    for k in np.unique(drawn):
        counts = np.bincount(owners[drawn == k], minlength=num_generators)
        assert len(counts) == num_generators
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("settings", [None, FilterConfig(retries=2)])
def test_an_image_is_what_its_generator_alone_draws(
    settings: FilterConfig | None,
    context: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synthesis, "CHUNK", 16)
    sources = [source_of(number, filter=settings) for number in range(NUM_GENERATORS)]
    for number, source in enumerate(sources):
        draw_set(source, 60, tmp_path / f"{number}.npy", ("t",), context)
    alone = [open_set(tmp_path / f"{number}.npy", ("a", "b")) for number in range(NUM_GENERATORS)]
    draw_set(mixed(sources), 60, tmp_path / "mixed.npy", ("t",), context)
    together = open_set(tmp_path / "mixed.npy", ("a", "b"))

    values = [each.images[0, 0, 0, 0] for each in alone]  # the left column names the generator
    assert len(set(values)) == NUM_GENERATORS
    np.testing.assert_array_equal(together.labels, alone[0].labels)
    owners = np.array([values.index(value) for value in together.images[:, 0, 0, 0]])
    for i, owner in enumerate(owners):
        np.testing.assert_array_equal(together.images[i], alone[owner].images[i])
    for k, per_generator in ((0, 6), (1, 14)):
        assert np.bincount(owners[together.labels == k]).tolist() == [per_generator] * 3


def test_a_mixed_set_does_not_depend_on_the_chunks(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for chunk in (256, 7):
        monkeypatch.setattr(synthesis, "CHUNK", chunk)
        path = tmp_path / f"{chunk}.npy"
        draw_set(mixed([source_of(0), source_of(1)]), 50, path, ("t",), context)
        digests.add(open_set(path, ("a", "b")).digest())
    assert len(digests) == 1


def test_an_empty_table_repeats_the_generator_and_a_kind_is_checked(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    assert kr.Recipe.load(path).further_generators == {}
    recipe = kr.Recipe.load(path, ["further_generators.second={}"])
    assert recipe.further_generators["second"] == recipe.generator
    assert kr.Recipe.from_dict(recipe.model_dump(mode="json", exclude_unset=True)) == recipe
    with pytest.raises(kr.RecipeError, match="did you mean 'flow'"):
        kr.Recipe.load(path, ["further_generators.second.kind=flo"])
    with pytest.raises(kr.RecipeError, match="further_generators"):
        kr.Recipe.load(path, ["further_generators.second.widht=8"])


def test_a_run_with_a_second_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, one, two = write_recipe(tmp_path), tmp_path / "one", tmp_path / "two"
    kr.run(kr.Recipe.load(path, TINY), one, until="tuning")
    recipe = kr.Recipe.load(path, [*TINY, "further_generators.second={}"])
    stop_once_in(monkeypatch, "generator")
    with pytest.raises(Interrupted):
        kr.run(recipe, two)
    second = two / "generator/generator-second"
    assert (second / "done.json").exists()
    before = {each: each.stat().st_mtime_ns for each in second.iterdir()}
    result = kr.run(recipe, two)
    assert before == {each: each.stat().st_mtime_ns for each in second.iterdir()}

    shared = weights(one)
    own = weights(two)
    assert {name: own[name] for name in shared if name in own} == shared
    candidates = sorted(two.glob("generator/generator-second/candidate-*.safetensors"))
    assert [each.name for each in candidates] == [
        each.name for each in sorted(two.glob("generator/candidate-*.safetensors"))
    ]
    for each in candidates:
        assert each.read_bytes() != (two / "generator" / each.name).read_bytes()

    assert result is not None
    further = result.further_generators["second"]
    assert [each.name for each in further.candidates] == [each.stem for each in candidates]
    assert all(set(each.knobs) == {"guidance"} for each in further.tuning)
    assert set(result.chosen.knobs) == {"guidance", "hard_weight"}
    sampling = json.loads((two / "student/student.json").read_text())["sampling"]
    assert sampling["sampled"] % 96 == 0
    with pytest.raises(kr.RunError, match="there is no audit"):
        pipeline.release(two, tmp_path / "bundle")


def stop_once_in(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Interrupts the training `name` once, before its first step."""
    train = pipeline.stages.train

    def stopped(objective: Any, batches: Any, plan: Any, *arguments: Any, **named: Any) -> Any:
        if plan.name == name:
            monkeypatch.setattr(pipeline.stages, "train", train)
            raise Interrupted
        return train(objective, batches, plan, *arguments, **named)

    monkeypatch.setattr(pipeline.stages, "train", stopped)
