"""idx files give what torchvision reads from them; odd ones are refused in words."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from knowledge_recycling.data.sources.idx import Config, load
from knowledge_recycling.errors import DataError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
NAMES = ("shirt", "boot", "bag")


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for begin, size in (("train", 40), ("t10k", 12)):
        images = rng.integers(0, 256, (size, 28, 28))
        (raw / f"{begin}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{begin}-labels-idx1-ubyte").write_bytes(idx(np.arange(size) % 3))
    return raw


def test_splits_are_those_of_torchvision(folder: Path) -> None:
    found = load(Config(path=folder, class_names=NAMES))
    assert found.keys() == {"train", "test"}
    for split, train in (("train", True), ("test", False)):
        theirs = FashionMNIST(str(folder.parents[1]), train=train)
        np.testing.assert_array_equal(found[split].images[:, 0], theirs.data.numpy())
        np.testing.assert_array_equal(found[split].labels, theirs.targets.numpy())
        assert found[split].class_names == NAMES


def test_gzipped_files_are_the_same(folder: Path) -> None:
    plain = load(Config(path=folder))
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = load(Config(path=folder))
    for split in plain:
        assert zipped[split].digest() == plain[split].digest()
    assert plain["train"].class_names == ("0", "1", "2")


def test_a_set_without_test_files_is_train_alone(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").unlink()
    assert load(Config(path=folder)).keys() == {"train"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (IMAGES, None, "does not exist"),
        (LABELS, None, "does not exist"),
        (IMAGES, b"", "another form"),
        (IMAGES, idx(np.zeros(40)), "another form"),
        (IMAGES, b"\0\0\x0d\x03" + bytes(12), "another form"),
        (IMAGES, b"\0\0\x08\x03" + bytes(5), "cannot be read"),
        (IMAGES, idx(np.zeros((40, 28, 28)))[:-1], "not as long as it says"),
        (IMAGES, idx(np.zeros((40, 28, 28))) + b"x", "not as long as it says"),
        (LABELS, idx(np.zeros(39)), "not the number of images"),
        (f"{IMAGES}.gz", b"no gzip", "cannot be read"),
        (f"{IMAGES}.gz", gzip.compress(idx(np.zeros((40, 28, 28))))[:-20], "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_odd_files_are_refused_in_words(
    folder: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load(Config(path=folder))
    assert str(folder) in str(caught.value.where)


def test_class_names_must_match(folder: Path) -> None:
    with pytest.raises(DataError, match="class names"):
        load(Config(path=folder, class_names=("shirt", "boot")))
