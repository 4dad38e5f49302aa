"""CIFAR's files give what torchvision reads from them, and nothing in them is executed."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100, utils

from knowledge_recycling.data.sources.cifar import Config, load, read_batch
from knowledge_recycling.errors import DataError

SIZE = 20


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, 3072), dtype=np.uint8)


def write(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Both sets in small."""
    ten, hundred = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-100-python"
    for folder in (ten, hundred):
        folder.mkdir()
    for i, (name, _) in enumerate(CIFAR10.train_list + CIFAR10.test_list):
        labels = [(i + j) % 10 for j in range(SIZE)]
        names = [f"{j}.png" for j in range(SIZE)]
        batch = {"batch_label": "some", "labels": labels, "data": pixels(i), "filenames": names}
        write(ten / name, batch)
    write(ten / "batches.meta", {"label_names": [f"kind {i}" for i in range(10)], "num_vis": 3072})
    for i, name in enumerate(("train", "test")):
        fine, coarse = ([j % k for j in range(SIZE)] for k in (100, 20))
        write(hundred / name, {"coarse_labels": coarse, "data": pixels(i), "fine_labels": fine})
    names = {f"{w}_label_names": [f"{w} {i}" for i in range(100)] for w in ("coarse", "fine")}
    write(hundred / "meta", names)
    return tmp_path


@pytest.mark.parametrize(("name", "theirs"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_splits_are_those_of_torchvision(
    name: str, theirs: type[CIFAR10], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theirs, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    found = load(Config(name=name, root=root))
    for split, train in (("train", True), ("test", False)):
        official = theirs(str(root), train=train)
        ours = found[split]
        np.testing.assert_array_equal(np.moveaxis(ours.images, 1, 3), official.data)
        named = [official.classes[label] for label in official.targets]
        assert [ours.class_names[label] for label in ours.labels] == named


def test_files_of_python_2_are_read(tmp_path: Path) -> None:
    """As the archives have them: byte strings, and what makes the array beside them."""
    content = pixels(0).tobytes()
    old = (
        b"\x80\x02}q\x01(U\x06labels"
        + b"](" + b"".join(b"K" + bytes([i % 10]) for i in range(SIZE)) + b"e"
        + b"U\x04datacnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nK\x00\x85U\x01b"
        + b"\x87R(K\x01M\x14\x00M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89"
        + b"T" + struct.pack("<i", len(content)) + content
        + b"tbu."
    )  # fmt: skip
    (tmp_path / "batch").write_bytes(old)
    images, labels = read_batch(tmp_path / "batch")
    np.testing.assert_array_equal(np.moveaxis(images, 3, 1).reshape(SIZE, 3072), pixels(0))
    assert labels.tolist() == [i % 10 for i in range(SIZE)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"no pickle", "cannot be read"),
        (pickle.dumps({"labels": [1, 2], "data": pixels(0)}, protocol=2), "another form"),
        (pickle.dumps({"data": pixels(0)}, protocol=2), "another form"),
        (pickle.dumps([1, 2, 3], protocol=2), "another form"),
        (pickle.dumps({"labels": [1], "data": pixels(0)}, protocol=2)[:-500], "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_odd_files_are_refused_in_words(root: Path, content: bytes, said: str) -> None:
    path = root / "cifar-10-batches-py/data_batch_2"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load(Config(root=root))
    assert str(path) in str(caught.value.where)


def test_without_its_files_the_set_is_fetched_only_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="not there") as caught:
        load(Config(root=tmp_path / "none"))
    assert "download = true" in str(caught.value.next_step)
    asked = []

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((url, root, filename, md5))
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(utils, "download_and_extract_archive", fetch)
    with pytest.raises(DataError, match="cannot be read"):
        load(Config(root=tmp_path / "none", download=True))
    none = str(tmp_path / "none")
    assert asked == [(CIFAR10.url, none, CIFAR10.filename, CIFAR10.tgz_md5)]
