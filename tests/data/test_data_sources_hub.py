"""Sets written by the library `datasets` itself come back as they were, and nothing is fetched."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from knowledge_recycling.data.sources.hub import Config, load
from knowledge_recycling.errors import DataError

datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    datasets.disable_progress_bars()


@pytest.fixture
def made() -> Any:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["zebra", "absent", "ant"]),
            "group": datasets.Value("string"),
        }
    )
    rows = {
        "image": [Image.fromarray(pixels) for pixels in IMAGES],
        "label": [0, 2] * 6,
        "group": [f"patient {row // 2}" for row in range(12)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def check(part: Any, rows: list[int]) -> None:
    np.testing.assert_array_equal(part.images[:, 0], IMAGES[rows])
    assert part.class_names == ("zebra", "ant")
    assert part.labels.tolist() == [row % 2 for row in rows]
    assert part.groups.tolist() == [row // 2 for row in rows]


def test_a_saved_set_is_train(made, tmp_path):
    made.save_to_disk(tmp_path / "set")
    found = load(Config(path=tmp_path / "set"))
    assert found.keys() == {"train"}
    check(found["train"], list(range(12)))


def test_saved_splits_are_kept_in_their_order(made, tmp_path):
    shuffled = made.shuffle(seed=1)
    splits = datasets.DatasetDict(train=shuffled, validation=made, test=made.select([5, 4, 11, 2]))
    splits.save_to_disk(tmp_path / "set")
    found = load(Config(path=tmp_path / "set"))
    assert found.keys() == {"train", "val", "test"}
    np.testing.assert_array_equal(found["val"].images[:, 0], IMAGES)
    np.testing.assert_array_equal(found["test"].images[:, 0], IMAGES[[5, 4, 11, 2]])
    expected = [np.asarray(image) for image in shuffled["image"]]
    np.testing.assert_array_equal(found["train"].images[:, 0], expected)


@pytest.mark.parametrize(
    "names",
    [
        {"train": "data/train-00000-of-00001.parquet", "val": "data/validation-00000-of-1.parquet"},
        {"train": "train/0000.parquet", "val": "valid/0000.parquet"},
        {"train": "anything.parquet"},
    ],
)
def test_parquet_files_tell_their_split_by_name(made, tmp_path, names):
    for name in names.values():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        made.to_parquet(tmp_path / name)
    found = load(Config(path=tmp_path))
    assert found.keys() == names.keys()
    for part in found.values():
        check(part, list(range(12)))


def test_shards_of_a_split_are_joined_in_order(made, tmp_path):
    made.select(range(7)).to_parquet(tmp_path / "train-0.parquet")
    made.select(range(7, 12)).to_parquet(tmp_path / "train-1.parquet")
    check(load(Config(path=tmp_path))["train"], list(range(12)))


def refused(path: Path, **values: object) -> str:
    with pytest.raises(DataError) as caught:
        load(Config(path=path, **values))
    return str(caught.value)


def test_what_cannot_be_used_is_refused(made, tmp_path):
    assert "no folder" in refused(tmp_path / "none")
    assert "no such file" in refused(tmp_path)
    datasets.DatasetDict(train=made, extra=made).save_to_disk(tmp_path / "other")
    assert "no known split" in refused(tmp_path / "other")
    made.to_parquet(tmp_path / "mixed/train.parquet")
    made.to_parquet(tmp_path / "mixed/other.parquet")
    assert "no known split" in refused(tmp_path / "mixed")
    made.save_to_disk(tmp_path / "set")
    assert "lacks the column 'finding'" in refused(tmp_path / "set", label_column="finding")
    (next((tmp_path / "set").glob("*.arrow"))).write_bytes(b"damaged")
    assert "cannot be read" in refused(tmp_path / "set")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/train.parquet").symlink_to(tmp_path / "mixed/train.parquet")
    assert "symbolic link" in refused(tmp_path / "linked")


def test_an_address_in_place_of_an_image_is_never_followed(tmp_path):
    rows = {
        "image": [{"bytes": None, "path": "https://example.org/x.png"}] * 2,
        "label": ["a", "b"],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    assert "cannot be read: 1" in refused(tmp_path / "set")


def test_loading_writes_nothing(made, tmp_path):
    made.save_to_disk(tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    load(Config(path=tmp_path / "set"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
