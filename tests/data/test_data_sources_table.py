"""Tables against the arrays their images were written from; wrong ones refused by row, column."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knowledge_recycling.data.sources.table import Config, load
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.errors import DataError, KRError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 8), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def put_images(folder: Path) -> list[str]:
    (folder / "scans").mkdir(parents=True)
    names = [f"scans/{number}.png" for number in range(len(IMAGES))]
    for name, pixels in zip(names, IMAGES, strict=True):
        (folder / name).write_bytes(png(pixels))
    return names


def put_csv(folder: Path, **columns: list[object]) -> Path:
    with (folder / "set.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
    return folder / "set.csv"


def put_parquet(folder: Path, **columns: list[object]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="the extra `table` is not installed")
    from pyarrow import parquet

    parquet.write_table(arrow.table(columns), folder / "set.parquet")
    return folder / "set.parquet"


def refused(path: Path, **values: object) -> str:
    with pytest.raises(DataError) as caught:
        load_splits(Config(path=path, **values))
    assert None not in (caught.value.where, caught.value.expected, caught.value.next_step)
    return str(caught.value)


@pytest.mark.parametrize("put", [put_csv, put_parquet])
def test_paths_labels_groups_and_splits_come_back(tmp_path, put):
    columns = {
        "image": put_images(tmp_path),
        "label": ["dog", "cat"] * 6,
        "group": [f"patient {row // 3}" for row in range(12)],
        "split": ["train", "train", "Validation", "test"] * 3,
        "site": [0.5] * 12,
    }
    found = load(Config(path=put(tmp_path, **columns)))
    rows = {"train": [0, 1, 4, 5, 8, 9], "val": [2, 6, 10], "test": [3, 7, 11]}
    assert found.keys() == rows.keys()
    for split, part in found.items():
        np.testing.assert_array_equal(part.images[:, 0], IMAGES[rows[split]])
        assert part.class_names == ("cat", "dog")
        assert part.labels.tolist() == [1 - row % 2 for row in rows[split]]
        assert part.groups.tolist() == [row // 3 for row in rows[split]]


@pytest.mark.parametrize("stored", ["bytes", "struct", "dictionary"])
def test_bytes_in_parquet_come_back(tmp_path, stored):
    arrow = pytest.importorskip("pyarrow", reason="the extra `table` is not installed")
    encoded = [png(pixels) for pixels in IMAGES]
    images = [{"bytes": each, "path": "/elsewhere"} for each in encoded]
    labels = arrow.array(["a", "b"] * 6)
    path = put_parquet(
        tmp_path,
        image=images if stored == "struct" else encoded,
        label=labels.dictionary_encode() if stored == "dictionary" else labels,
    )
    train = load(Config(path=path))["train"]
    np.testing.assert_array_equal(train.images[:, 0], IMAGES)
    assert train.labels.tolist() == [0, 1] * 6


@pytest.mark.parametrize("put", [put_csv, put_parquet])
def test_numbers_are_classes_in_the_order_of_their_values(tmp_path, put):
    path = put(tmp_path, path=put_images(tmp_path), label=[10, 9, 2] * 4)
    train = load(Config(path=path))["train"]
    assert train.class_names == ("2", "9", "10")
    assert train.labels.tolist() == [2, 1, 0] * 4


def test_columns_and_the_folder_of_the_paths_may_be_named(tmp_path):
    put_images(tmp_path / "images")
    (tmp_path / "tables").mkdir()
    columns = {"file": [f"{i}.png" for i in range(12)], "finding": ["a", "b"] * 6, "who": range(12)}
    path = put_csv(tmp_path / "tables", **columns)
    config = Config(
        path=path,
        root=tmp_path / "images/scans",
        image_column="file",
        label_column="finding",
        group_column="who",
    )
    train = load(config)["train"]
    np.testing.assert_array_equal(train.images[:, 0], IMAGES)
    assert len(set(train.groups)) == 12


def test_a_file_of_groups_wins_over_the_column(tmp_path):
    names = put_images(tmp_path)
    path = put_csv(tmp_path, path=names, label=["a", "b"] * 6, group=["x"] * 12)
    groups = tmp_path / "groups.csv"
    groups.write_text("\n".join(["name,group", *(f"{n},{i // 2}" for i, n in enumerate(names))]))
    train = load(Config(path=path, groups=groups))["train"]
    assert len(set(train.groups)) == 6


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": ["a"]}, "lacks the column 'path'"),
        ({"path": ["scans/0.png"], "class": ["a"]}, "lacks the column 'label'"),
        ({"path": [], "label": []}, "no rows"),
        ({"path": ["scans/0.png"], "label": [""]}, "wrong label"),
        ({"path": [""], "label": ["a"]}, "wrong image"),
        ({"path": ["scans/0.png"], "label": ["a"], "split": ["dev"]}, "wrong split"),
        ({"path": ["../outside.png"], "label": ["a"]}, "wrong path"),
        ({"path": ["/etc/hostname"], "label": ["a"]}, "wrong path"),
        ({"path": ["link.png"], "label": ["a"]}, "wrong path"),
        ({"path": ["circle.png"], "label": ["a"]}, "wrong path"),
        ({"path": ["none.png", "scans"], "label": ["a", "b"]}, "cannot be read: 2"),
        (
            {"path": ["scans/0.png", "scans/1.png"], "label": ["a", "b"], "group": ["x", ""]},
            "1 of 2 images have no group",
        ),
    ],
)
def test_wrong_tables_are_refused(tmp_path, columns, words):
    put_images(tmp_path / "set")
    (tmp_path / "outside.png").write_bytes(png(IMAGES[0]))
    (tmp_path / "set/link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "set/circle.png").symlink_to("circle.png")
    assert words in refused(put_csv(tmp_path / "set", **columns))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": [1, 2], "label": ["a", "b"]}, "wrong image"),
        ({"image": [[0, 1], [1, 0]], "label": ["a", "b"]}, "lacks the column 'path'"),
        ({"image": [b"no image", b""], "label": ["a", "b"]}, "cannot be read: 2"),
        ({"image": [b"", None], "label": ["a", "b"]}, "wrong image"),
        ({"image": [b"", b""], "label": [0.0, 1.0]}, "wrong label"),
        ({"image": [b"", b""], "label": [-1, 1]}, "wrong label"),
        ({"image": [b"", b""], "label": [None, 1]}, "wrong label"),
        ({"image": ["a\0b", "c"], "label": [0, 1]}, "wrong path"),
    ],
)
def test_wrong_types_in_parquet_are_refused(tmp_path, columns, words):
    assert words in refused(put_parquet(tmp_path, **columns))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.csv", b"path,label\nscans/0.png,\xff\n"),
        ("set.csv", b"path,label\n" + b"x" * 200_000 + b",a\n"),
        ("set.parquet", b""),
        ("set.parquet", b"PAR1 no Parquet PAR1"),
        ("none.csv", None),
        ("none.parquet", None),
    ],
)
def test_unreadable_tables_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert "cannot be read" in refused(tmp_path / name)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = put_parquet(tmp_path, image=[b""], label=[0])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(KRError, match=r"pip install 'knowledge-recycling\[table\]'"):
        load(Config(path=path))
