"""A set in the form of the Hugging Face library `datasets`, on this disk (extra `hub`).

Either a folder that `save_to_disk` wrote, or one of Parquet files as on the hub: of several splits
if names or folders begin with train, val (valid, validation) or test, else all of them `train`.
Nothing is fetched and nothing copied to the library's cache. Images are the library's `Image`
feature or plain bytes; classes keep the names and order of a `ClassLabel`. Images are brought to
uint8 squares by the rules of the source `folder`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from knowledge_recycling.data.images import FoundSplits, SplitName
from knowledge_recycling.data.sources import LocalPath
from knowledge_recycling.data.sources._arrow import (
    class_names_of,
    columns_of,
    read_parquet,
    reading_arrow,
)
from knowledge_recycling.data.sources._listing import SPLIT_FOLDERS, stays_inside
from knowledge_recycling.data.sources._tables import ColumnsConfig, Rows, splits_of_rows
from knowledge_recycling.errors import DataError
from knowledge_recycling.extras import require

SAVED = ("state.json", "dataset_dict.json")
"""One of them is in every folder that `save_to_disk` wrote."""


class Config(ColumnsConfig):
    """A set of the library `datasets`, on this disk."""

    kind: Literal["hub"] = "hub"
    path: LocalPath
    """The folder that `save_to_disk` wrote, or that holds the Parquet files."""


def load(config: Config) -> FoundSplits:
    """Returns the splits of the set, images in the order of its rows.

    Raises:
        KRError: The extra `hub` is not installed.
        DataError: The folder is missing, damaged or has no such set, a column is missing, or an
            image cannot be read.
    """
    saved = any((config.path / name).is_file() for name in SAVED)
    tables = _saved_tables(config) if saved else _parquet_tables(config)
    return splits_of_rows(tables, config, config.path)


def _saved_tables(config: Config) -> list[Rows]:
    datasets = require("datasets", "hub")
    with reading_arrow(config.path, "an undamaged folder that `save_to_disk` wrote"):
        loaded = datasets.load_from_disk(str(config.path))
        parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
        return [
            _rows(part.with_format("arrow")[:], config, str(name)) for name, part in parts.items()
        ]


def _parquet_tables(config: Config) -> list[Rows]:
    files = sorted(config.path.rglob("*.parquet"))
    if not files:
        raise DataError(
            "the folder has no set of the library `datasets`",
            where=config.path,
            expected="what `save_to_disk` wrote, or .parquet files",
            got="no such file" if config.path.is_dir() else "no folder",
            next_step="correct the path; a relative one starts at the current folder",
        )
    outside = [file for file in files if not stays_inside(file, config.path)]
    if outside:
        raise DataError(
            "a symbolic link leads out of the folder",
            where=outside[0],
            expected="links to files inside it only",
            next_step="copy the file to the place of the link",
        )
    splits = {file: _split_of(file.relative_to(config.path)) for file in files}
    named = any(splits.values())
    return [
        _rows(read_parquet(file, "hub"), config, split or ("" if named else "train"), file)
        for file, split in splits.items()
    ]


def _split_of(file: Path) -> str | None:
    """Returns the split that the file's name, or a folder of it, begins with."""
    for part in reversed(file.with_suffix("").parts):
        first = re.split(r"[^a-z]", part.lower())[0]
        if first in SPLIT_FOLDERS:
            return first
    return None


def _rows(table: Any, config: Config, name: str, file: Path | None = None) -> Rows:
    split: SplitName | None = SPLIT_FOLDERS.get(name.lower())
    where = config.path / name if file is None else file
    if split is None:
        raise DataError(
            "a part of the set is no known split",
            where=where,
            expected="train and, if there are, test and one of val, valid, validation",
            got=name or file,
            next_step="rename it, or keep it elsewhere",
        )
    names = class_names_of(table, config.label_column)
    return Rows(columns_of(table), where, config.path, split, names)
