"""Files: what is written is read back equal; an interrupted write leaves no trace.

Checked against the values put in, torch's own optimiser, and the content of the folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from knowledge_recycling.errors import RunError
from knowledge_recycling.models.averaging import power_average
from knowledge_recycling.storage import (
    file_digest,
    read_arrays,
    read_json,
    read_state,
    read_weights,
    value_digest,
    write_arrays,
    write_json,
    write_state,
    write_text,
    write_weights,
    written_beside,
)


def assert_same(left: Any, right: Any) -> None:
    """Compares nested values; tuples count as lists."""
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert type(left) is type(right)
        assert left == right


def network() -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    return layers.to(memory_format=torch.channels_last)


def test_nested_state_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {
        "numbers": [1, 2.5, None, True, "text"],
        3: {"integer key": torch.tensor(4), "0": torch.zeros(2, 0)},
        "kinds": [torch.ones(2, dtype=kind) for kind in (torch.bfloat16, torch.int64, torch.bool)],
        "views": {"whole": shared, "part": shared[::2], "turned": torch.rand(2, 3).T},
        "tensor": {"tensor": "a key with the name of the marker"},
        "empty": {},
        "tenth": 0.1,
    }
    write_state(tmp_path / "state", state)
    assert_same(state, read_state(tmp_path / "state"))


def test_a_state_without_tensors_comes_back(tmp_path: Path) -> None:
    write_state(tmp_path / "state", {"step": 3, "records": [{"loss": 0.25}]})
    assert read_state(tmp_path / "state") == {"step": 3, "records": [{"loss": 0.25}]}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_an_optimiser_goes_on_from_its_stored_state(tmp_path: Path, kind: Any) -> None:
    options = {"lr": 0.1} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    module, twin = network(), network()
    optimizers = [kind(each.parameters(), **options) for each in (module, twin)]
    images = torch.rand(4, 3, 8, 8)

    def step(each: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        each(images).square().mean().backward()
        optimizer.step()

    step(module, optimizers[0])
    write_state(tmp_path / "state", [module.state_dict(), optimizers[0].state_dict()])
    weights, moments = read_state(tmp_path / "state")
    assert_same(optimizers[0].state_dict(), moments)
    twin.load_state_dict(weights)
    optimizers[1].load_state_dict(moments)
    for _ in range(3):
        step(module, optimizers[0])
        step(twin, optimizers[1])
    assert_same(dict(module.state_dict()), dict(twin.state_dict()))


def test_weights_come_back_into_a_channels_last_network(tmp_path: Path) -> None:
    module, twin = network(), network()
    module(torch.rand(4, 3, 8, 8))
    write_weights(tmp_path / "weights", module)
    read_weights(tmp_path / "weights", twin)
    assert_same(dict(module.state_dict()), dict(twin.state_dict()))
    assert twin[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_averaged_weights_fit_the_plain_network(tmp_path: Path) -> None:
    average = power_average(network())
    write_weights(tmp_path / "weights", average.module)
    twin = network()
    read_weights(tmp_path / "weights", twin)
    assert_same(dict(average.module.state_dict()), dict(twin.state_dict()))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights", nn.Linear(3, 2))
    with pytest.raises(RunError, match="damaged"):
        read_weights(tmp_path / "weights", nn.Linear(3, 4))


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail_half_way() -> None:
        with written_beside(path) as beside:
            beside.write_text("half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "no space left on the disk"),
        (errno.EACCES, "a file cannot be written"),
    ],
)
def test_a_full_disk_is_told_from_a_closed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, what: str
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(RunError) as caught:
        write_text(path, "new")
    assert (caught.value.what, caught.value.where) == (what, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """Lets the system refuse to write beyond 100,000 bytes of a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = np.random.default_rng(0).random((200, 200))
WRITERS: dict[str, Callable[[Path], None]] = {
    "weights": lambda path: write_weights(path, nn.Linear(200, 200)),
    "state": lambda path: write_state(path, {"a": torch.from_numpy(LARGE)}),
    "arrays": lambda path: write_arrays(path, {"a": LARGE}),
    "text": lambda path: write_text(path, "x" * 200_000),
}


@pytest.mark.usefixtures("small_files_only")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_write_that_the_system_cuts_short_is_an_error_of_the_run(
    tmp_path: Path, kind: str
) -> None:
    with pytest.raises(RunError, match="cannot be written") as caught:
        WRITERS[kind](tmp_path / "file")
    assert caught.value.got == os.strerror(errno.EFBIG)
    assert list(tmp_path.iterdir()) == []


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array([0.1, np.nan])}
    write_arrays(tmp_path / "a.npz", arrays)
    read = read_arrays(tmp_path / "a.npz")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_pickled_arrays_are_refused_both_ways(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "pickled.npz", a=objects)
    with pytest.raises(RunError):
        read_arrays(tmp_path / "pickled.npz")
    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(tmp_path / "new.npz", {"a": objects})
    assert not (tmp_path / "new.npz").exists()


def read_linear(path: Path) -> None:
    read_weights(path, nn.Linear(3, 2))


READERS = {
    "weights": (lambda path: write_weights(path, nn.Linear(3, 2)), read_linear),
    "state": (lambda path: write_state(path, {"a": torch.zeros(9)}), read_state),
    "json": (lambda path: write_json(path, {"a": [1, 2]}), read_json),
    "arrays": (lambda path: write_arrays(path, {"a": np.arange(99)}), read_arrays),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_a_truncated_file_is_damaged(tmp_path: Path, kind: str, kept: float) -> None:
    write, read = READERS[kind]
    path = tmp_path / "file"
    write(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(RunError, match="damaged") as caught:
        read(path)
    assert caught.value.where == path


@pytest.mark.parametrize("kind", READERS)
def test_a_missing_file_is_missing(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RunError, match="missing"):
        READERS[kind][1](tmp_path / "file")


def test_a_safetensors_file_of_others_is_no_state(tmp_path: Path) -> None:
    write_weights(tmp_path / "file", nn.Linear(3, 2))
    with pytest.raises(RunError, match="damaged"):
        read_state(tmp_path / "file")


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    assert value_digest({"b": 1, "a": [2]}) == value_digest({"a": [2], "b": 1})
    assert value_digest({"a": 1}) == hashlib.sha256(json.dumps({"a": 1}).encode()).hexdigest()
