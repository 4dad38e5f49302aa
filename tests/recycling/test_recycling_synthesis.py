"""Synthetic sets and the regenerating stream, with a generator that shows its label and seed.

Shares are checked against counts, the stream against its promises: one function of the step, other
images after each period, one set on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from knowledge_recycling import interruption
from knowledge_recycling.context import Context
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.errors import DataError
from knowledge_recycling.interruption import Interrupted
from knowledge_recycling.recycling import synthesis
from knowledge_recycling.recycling.filtering import FilterConfig
from knowledge_recycling.recycling.synthesis import (
    RegeneratingStream,
    Source,
    class_prior,
    draw_labels,
    draw_set,
    labels_path,
    open_set,
)

SHAPE = (1, 4, 4)


class Painter(nn.Module):
    """Paints its label into the left column and noise of its seed into the rest."""

    def sample(self, labels: Tensor, seeds: Tensor, knobs: Any) -> Tensor:
        images = torch.stack(
            [torch.rand(SHAPE, generator=torch.Generator().manual_seed(s)) for s in seeds.tolist()]
        )
        images[..., 0] = (labels * 2.0 - 1)[:, None, None]
        return images


class Reader(nn.Module):
    """Reads the label back from the left column, and knows it for sure."""

    def forward(self, images: Tensor) -> Tensor:
        light = images[:, 0, :, 0].mean(dim=1)
        return torch.stack([-100 * light, 100 * light], dim=1)


class Rejecting(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([[9.0, 0.0]]).expand(len(images), 2)


def make_source(prior: tuple[float, float] = (0.5, 0.5), **changes: Any) -> Source:
    parts = {"filter": None, "teacher": Reader()} | changes
    return Source(Painter(), {}, ("a", "b"), np.array(prior), **parts)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.integers(1, 500),
    st.integers(0, 2**32),
)
def test_each_class_is_within_one_image_of_its_share(
    counts: list[int], size: int, seed: int
) -> None:
    shares = np.array(counts) / sum(counts)
    labels = draw_labels(shares, size, np.random.default_rng(seed))
    assert labels.dtype == np.int64
    drawn = np.bincount(labels, minlength=len(counts))
    assert drawn.sum() == size
    assert len(drawn) == len(counts)
    assert np.abs(drawn - shares * size).max() <= 1 + 1e-9


@pytest.mark.parametrize(("num_classes", "size"), [(2, 100), (10, 1000), (7, 70)])
def test_balanced_labels_are_exact_and_mixed(num_classes: int, size: int) -> None:
    shares = np.full(num_classes, 1 / num_classes)
    labels = draw_labels(shares, size, np.random.default_rng(0))
    assert set(np.bincount(labels)) == {size // num_classes}
    assert not np.array_equal(labels, np.sort(labels))


def test_rare_classes_are_drawn_as_often_as_their_share_in_the_long_run() -> None:
    shares = np.array([0.97, 0.03])
    drawn = [draw_labels(shares, 10, np.random.default_rng(i)).sum() for i in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / 2000))


def test_the_prior_is_balanced_or_that_of_the_real_set() -> None:
    labels = np.array([0, 0, 0, 1])
    real = ImageSet(np.zeros((4, *SHAPE), np.uint8), labels, ("a", "b"))
    np.testing.assert_array_equal(class_prior(real, "balanced"), [0.5, 0.5])
    np.testing.assert_array_equal(class_prior(real, "real"), [0.75, 0.25])


@pytest.mark.parametrize("chunk", [256, 7])
def test_a_set_on_disk_holds_the_images_of_its_labels(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(synthesis, "CHUNK", chunk)
    source, path = make_source((0.25, 0.75)), tmp_path / "set.npy"
    draw_set(source, 40, path, ("t",), context)
    drawn = open_set(path, source.class_names)
    assert isinstance(drawn.images, np.memmap)
    assert drawn.images.shape == (40, *SHAPE)
    assert drawn.class_counts().tolist() == [10, 30]
    np.testing.assert_array_equal(drawn.images[:, 0, 0, 0], drawn.labels * 255)
    assert len(np.unique(drawn.images[..., 1:].reshape(40, -1), axis=0)) == 40
    assert {each.name for each in tmp_path.iterdir()} == {"set.npy", "set.labels.npy"}
    assert (source.tally.sampled, source.tally.unfiltered) == (40, 0)


def test_a_set_does_not_depend_on_the_chunks_but_on_its_name(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {}
    for key, chunk, name in (("a", 256, "t"), ("b", 7, "t"), ("c", 256, "u")):
        monkeypatch.setattr(synthesis, "CHUNK", chunk)
        draw_set(make_source(), 20, tmp_path / f"{key}.npy", (name,), context)
        digests[key] = open_set(tmp_path / f"{key}.npy", ("a", "b")).digest()
    assert digests["a"] == digests["b"] != digests["c"]


def test_an_interrupted_set_is_absent(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis, "CHUNK", 4)
    answers = iter([False, False, True])
    monkeypatch.setattr(interruption, "requested", lambda: next(answers))
    with pytest.raises(Interrupted):
        draw_set(make_source(), 20, tmp_path / "set.npy", ("t",), context)
    assert list(tmp_path.iterdir()) == []


def test_the_filter_passes_all_that_the_teacher_knows(context: Context, tmp_path: Path) -> None:
    source = make_source(filter=FilterConfig(threshold=0.9))
    draw_set(source, 20, tmp_path / "set.npy", ("t",), context)
    assert source.tally.unfiltered == 0


def test_a_filter_that_rejects_a_whole_class_is_an_error_that_names_it(
    context: Context, tmp_path: Path
) -> None:
    source = make_source(filter=FilterConfig(retries=1), teacher=Rejecting())
    with pytest.raises(DataError, match="class 'b'") as caught:
        draw_set(source, 20, tmp_path / "set.npy", ("t",), context)
    assert caught.value.got == "0 of 10, each tried 2 times"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def make_stream(context: Context, tmp_path: Path) -> Callable[..., RegeneratingStream]:
    def make(period: int, folder: str = "stream", **changes: Any) -> RegeneratingStream:
        settings = {"size": 22, "batch_size": 5, "name": "student"} | changes
        return RegeneratingStream(
            make_source(), period=period, folder=tmp_path / folder, context=context, **settings
        )

    return make


STEPS_PER_EPOCH = 4


def round_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("period", [1, 2, 3])
def test_sets_are_the_same_within_a_round_and_new_after_it(
    make_stream: Callable[..., RegeneratingStream], period: int
) -> None:
    stream = make_stream(period)
    digests = []
    for epoch in range(6):
        for step in range(STEPS_PER_EPOCH):
            images, labels = stream(epoch * STEPS_PER_EPOCH + step)
            assert images.shape == (5, *SHAPE)
            torch.testing.assert_close(images[:, 0, 0, 0], labels * 2.0 - 1)
        name = f"round-{epoch // period:04d}.npy"
        assert round_files(stream.folder) == {name, labels_path(Path(name)).name}
        digests.append(open_set(stream.folder / name, ("a", "b")).digest())
    rounds = [digests[i : i + period] for i in range(0, 6, period)]
    assert all(len(set(each)) == 1 for each in rounds)
    assert len({each[0] for each in rounds}) == len(rounds)


def test_period_zero_is_one_fixed_set_in_ever_new_order(
    make_stream: Callable[..., RegeneratingStream],
) -> None:
    stream = make_stream(0, size=20)
    epochs = [
        torch.cat([stream(epoch * 4 + step)[0] for step in range(4)]).flatten(1).tolist()
        for epoch in range(3)
    ]
    assert round_files(stream.folder) == {"round-0000.npy", "round-0000.labels.npy"}
    assert stream.source.tally.sampled == 20
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("period", [0, 1, 2])
def test_a_batch_is_a_function_of_the_step(
    make_stream: Callable[..., RegeneratingStream], period: int
) -> None:
    forward = [make_stream(period)(step)[0] for step in range(12)]
    backward = make_stream(period, "other")
    for step in reversed(range(12)):
        assert torch.equal(backward(step)[0], forward[step])
    named = make_stream(period, "named", name="cheap student")
    assert not torch.equal(named(0)[0], forward[0])


def test_a_half_written_round_is_drawn_anew(
    make_stream: Callable[..., RegeneratingStream],
) -> None:
    stream = make_stream(1)
    whole = stream(0)[0]
    labels_path(stream.folder / "round-0000.npy").unlink()
    (stream.folder / "round-0000.npy").write_bytes(b"half")
    assert torch.equal(stream(0)[0], whole)
