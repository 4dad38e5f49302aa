"""Bad input at scale: each case ends in an error that names it or in the data it holds.

Never in a traceback, a hang, or memory beyond that of a few images; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import io
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import GREY, Odd, encoded, odd_files, trap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rich.console import Console

import knowledge_recycling as kr
from benchmarks.kills import tiny_recipe
from knowledge_recycling import storage
from knowledge_recycling.config import kind_module
from knowledge_recycling.data.inspection import inspect, render
from knowledge_recycling.data.sources import npz, table
from knowledge_recycling.data.sources.folder import Config as FolderConfig
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.errors import printable
from knowledge_recycling.recipe import Recipe, apply_override

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}
SECONDS = 60
"""A case that takes longer counts as a hang."""
MEBIBYTES = 400
"""Largest growth of memory over all image files; a bomb of those here would take 900 and more."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


ODD = list(odd_files())


def peak_mebibytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def put_good(root: Path) -> None:
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            (root / name / f"good{number}.png").write_bytes(encoded(GREY))


def put(odd: Odd, path: Path) -> None:
    if isinstance(odd.content, bytes):
        path.write_bytes(odd.content)
    else:
        odd.content(path)


def load_with(odd: Odd, root: Path) -> int | str:
    """Returns the number of images of a set with this file, or the words of the error."""
    path = root / "a" / odd.name
    put(odd, path)
    signal.alarm(SECONDS)
    try:
        splits = load_splits(FolderConfig(path=root))
    except kr.KRError as error:
        return str(error)
    finally:
        signal.alarm(0)
        path.unlink()
    sizes = [len(part) for part in (splits.train, splits.val, splits.test)]
    assert splits.train.images.nbytes < 1e6
    return sum(sizes)


def test_image_files_are_read_or_named_in_little_memory(tmp_path: Path) -> None:
    put_good(tmp_path)
    assert len(ODD) >= 250
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
    before = peak_mebibytes()
    wrong = []
    for odd in ODD:
        outcome = load_with(odd, tmp_path)
        named = isinstance(outcome, str) and printable(odd.name) in outcome
        must_be_refused, must_be_read = not odd.may_be_read, not odd.may_be_refused
        right = named if must_be_refused else outcome == 9 or (named and not must_be_read)
        if not right:
            wrong.append((odd.name, outcome))
    assert not wrong
    assert peak_mebibytes() - before < MEBIBYTES


def test_names_that_are_no_text_can_be_shown(tmp_path: Path) -> None:
    for name in ("<script>", "\x1b[31mred", "[bold]", "new\nline", "\udcff\udcfe"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").write_bytes(encoded(GREY))
    splits = load_splits(FolderConfig(path=tmp_path))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    Console(file=stream, width=200).print(render(inspect(splits)))
    stream.flush()
    shown = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"<script>" in shown
    assert b"\x1b" not in shown
    json.dumps(splits.train.class_names).encode()


# Recipes.


def keys(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in node.items() if isinstance(node, dict) else ():
        yield (*path, name)
        yield from keys(value, (*path, name))


WHOLE = Recipe.from_dict({"data": {"kind": "digits"}}).model_dump(mode="json")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def check_words(error: kr.KRError) -> None:
    assert error.what
    assert "Traceback" not in str(error)


@settings(max_examples=300, **RELAXED)
@given(st.sampled_from(list(keys(WHOLE))), VALUES)
def test_any_value_of_any_key_is_refused_by_name_or_kept(key: tuple[str, ...], value: Any) -> None:
    values = json.loads(json.dumps(WHOLE))
    node = values
    for name in key[:-1]:
        node = node[name]
    node[key[-1]] = value
    try:
        recipe = Recipe.from_dict(values)
    except kr.KRError as error:
        check_words(error)
    else:
        text = json.dumps(recipe.model_dump(mode="json"), allow_nan=False)
        assert Recipe.from_dict(json.loads(text)) == recipe


@settings(max_examples=100, **RELAXED)
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_are_no_recipe_or_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.toml").write_bytes(content)
    with contextlib.suppress(kr.RecipeError):
        Recipe.load(tmp_path / "recipe.toml")


@settings(max_examples=100, **RELAXED)
@given(st.text(max_size=20) | st.sampled_from([".".join(key) + "=1" for key in keys(WHOLE)]))
def test_any_override_is_refused_or_applied(override: str) -> None:
    values: dict[str, Any] = {"data": {"kind": "digits"}}
    with contextlib.suppress(kr.RecipeError):
        apply_override(values, override)
        Recipe.from_dict(values)


# Arrays.

DTYPES = st.sampled_from(["u1", "i8", "i2", "f4", "f8", "?", "c8", "U3", "S2", "M8[s]", "f2"])


@st.composite
def archives(draw: Any) -> dict[str, np.ndarray]:
    """Draws an archive of the usual names, right or wrong in number, shape, type and value."""
    count = draw(st.integers(0, 12))
    shapes = [(count, 4, 4), (count, 4, 4, 3), (count, 4), (count, 4, 4, 2), ()]
    shape = draw(st.sampled_from(shapes))
    images = draw(hnp.arrays(draw(DTYPES), shape)) if draw(st.booleans()) else np.zeros(shape, "u1")
    numbers = st.integers(-1, 3)
    wrong = hnp.arrays(draw(DTYPES), draw(st.sampled_from([(count,), (count, 1), (count, 2), ()])))
    labels = draw(hnp.arrays("i8", (count,), elements=numbers) | wrong)
    arrays = {"train_images": images, "train_labels": labels}
    for name in draw(st.lists(st.sampled_from(["val", "test"]), unique=True)):
        arrays |= {f"{name}_images": images, f"{name}_labels": labels.reshape(-1)[: draw(numbers)]}
    if draw(st.booleans()):
        arrays["train_groups"] = draw(hnp.arrays(draw(DTYPES), (count,)))
    return arrays


@settings(max_examples=200, **RELAXED)
@given(archives())
def test_any_arrays_are_refused_or_split_whole(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    try:
        splits = load_splits(npz.Config(path=tmp_path / "set.npz"))
    except kr.KRError as error:
        check_words(error)
        return
    found = [splits.train, splits.val, splits.test]
    given_names = [name for name in ("train", "val", "test") if f"{name}_images" in arrays]
    expected = sum(len(arrays[f"{name}_labels"]) for name in given_names)
    assert sum(map(len, found)) == expected
    for part in found:
        assert part.images.dtype == np.uint8
        assert set(part.labels) <= set(range(part.num_classes))


# Tables.

CELLS = st.sampled_from(
    [
        *(None, True, 1, -1, 2**40, 1.5, float("nan"), datetime.date(2020, 1, 1)),
        *("a", "", "x.png", "../x.png", "/etc/passwd", decimal.Decimal("1.5")),
        *(b"", b"no image", encoded(GREY), [1], [encoded(GREY)], {"other": 1}),
        *({"bytes": encoded(GREY)}, {"path": "x.png"}, {"bytes": None, "path": None}),
    ]
)


@settings(max_examples=200, **RELAXED)
@given(
    st.dictionaries(
        st.sampled_from(["image", "path", "label", "group", "split", "other"]),
        st.tuples(CELLS, CELLS, st.booleans()),
        min_size=1,
    )
)
def test_any_schema_of_parquet_is_refused_or_read(tmp_path: Path, columns: dict[str, Any]) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra `table` is not installed")
    from pyarrow import parquet

    (tmp_path / "x.png").write_bytes(encoded(GREY))
    values = {name: [one, one if same else two] * 4 for name, (one, two, same) in columns.items()}
    try:
        made = arrow.table(values)
        parquet.write_table(made, tmp_path / "set.parquet")
    except (arrow.ArrowException, TypeError, ValueError, OverflowError):
        return  # no such file can be
    try:
        found = table.load(table.Config(path=tmp_path / "set.parquet"))
    except kr.KRError as error:
        check_words(error)
    else:
        assert sum(map(len, found.values())) == 8
        assert all((part.images == GREY).all() for part in found.values())


# Pickles.


def traps(marker: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields kinds of sources with settings that lead to a file that acts when unpickled."""
    content = trap(marker)
    objects = np.array([None], dtype=object)
    np.savez(folder / "objects.npz", train_images=objects, train_labels=objects)
    for name in ("set.npz", "set.npy", "set.csv", "set.parquet", "a.png"):
        (folder / name).write_bytes(content)
    (folder / "classes/a").mkdir(parents=True)
    (folder / "classes/a/x.png").write_bytes(content)
    (folder / "classes/a/x.dcm").write_bytes(content)
    (folder / "saved").mkdir()
    for name in ("state.json", "dataset_info.json", "data.arrow", "train.parquet"):
        (folder / "saved" / name).write_bytes(content)
    (folder / "breastmnist.npz").write_bytes(content)
    (folder / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (folder / "cifar-100-python" / name).write_bytes(content)
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    for name in ("objects.npz", "set.npz", "set.npy"):
        yield "npz", {"path": folder / name}
    for name in ("set.csv", "set.parquet"):
        yield "table", {"path": folder / name}
    for kind in ("folder", "dicom"):
        yield kind, {"path": folder / "classes"}
    yield "hub", {"path": folder / "saved"}
    yield "medmnist", {"name": "breastmnist", "root": folder}
    yield "cifar", {"name": "cifar100", "root": folder}
    yield "idx", {"path": folder}


def test_no_source_unpickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    marker = tmp_path / "unpickled"
    for kind, values in traps(marker, tmp_path):
        module = kind_module("data.sources", kind)
        with pytest.raises(kr.KRError):
            module.load(module.Config(**values))
    assert not marker.exists()


def test_no_reader_of_a_run_unpickles(tmp_path: Path) -> None:
    marker = tmp_path / "unpickled"
    (tmp_path / "file").write_bytes(trap(marker))
    for read in (storage.read_json, storage.read_sealed, storage.read_arrays, storage.read_state):
        with pytest.raises(kr.RunError):
            read(tmp_path / "file")
    with pytest.raises(kr.RunError):
        storage.read_weights(tmp_path / "file", __import__("torch").nn.Linear(2, 2))
    assert not marker.exists()


LOADED: list[str] = []
"""Names that anything unpickled while `WATCHING`."""
WATCHING: list[bool] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class" and WATCHING:
        LOADED.append(".".join(map(str, arguments)))


def test_a_whole_run_unpickles_nothing(tmp_path: Path) -> None:
    sys.addaudithook(watch)
    WATCHING.append(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kr.run(tiny_recipe(tmp_path), tmp_path / "run")
            kr.run(tiny_recipe(tmp_path), tmp_path / "run")
        assert not LOADED
        np.load(io.BytesIO(trap_array()), allow_pickle=True)
        assert LOADED, "the watch is blind"
    finally:
        WATCHING.clear()


def trap_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Path("x")], dtype=object), allow_pickle=True)
    return buffer.getvalue()
