"""A table with one row per image: CSV, or Parquet (extra `table`).

Columns: the image, as a path relative to the table or, in Parquet, as the bytes of a file; its
label, a name or a number from 0; optional group (patient, slide...) and split. Paths that lead out
of the folder are refused. Images are brought to uint8 squares by the rules of the source `folder`.
In CSV all is text, in UTF-8; a Parquet file is held in memory whole, its images still encoded.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

from knowledge_recycling.data.images import FoundSplits
from knowledge_recycling.data.sources import LocalPath
from knowledge_recycling.data.sources._arrow import class_names_of, columns_of, read_parquet
from knowledge_recycling.data.sources._tables import ColumnsConfig, Rows, splits_of_rows
from knowledge_recycling.errors import DataError


class Config(ColumnsConfig):
    """A table of images, CSV or Parquet."""

    kind: Literal["table"] = "table"
    path: LocalPath
    """The table; a name that ends in .parquet is Parquet, any other CSV."""
    root: LocalPath | None = None
    """Folder that the paths in the table start at; unset: that of the table."""


def load(config: Config) -> FoundSplits:
    """Returns the splits of the table, images in the order of its rows.

    Raises:
        KRError: The table is Parquet and pyarrow is not installed.
        DataError: The table is missing, damaged or incomplete, a path leads out of the folder, or
            an image cannot be read.
    """
    rows = read_table(config.path, config.root or config.path.parent, config.label_column)
    return splits_of_rows([rows], config, config.path)


def read_table(path: Path, root: Path, label_column: str) -> Rows:
    """Returns the rows of a CSV or Parquet file.

    Raises:
        KRError: The table is Parquet and pyarrow is not installed.
        DataError: The file is missing or damaged.
    """
    if path.suffix.lower() != ".parquet":
        return Rows(_read_csv(path), path, root)
    table = read_parquet(path, "table")
    names = class_names_of(table, label_column)
    return Rows(columns_of(table), path, root, class_names=names)


def _read_csv(path: Path) -> dict[str, list[str | None]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, restkey="")
            rows = list(reader)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(
            "the table cannot be read",
            where=path,
            expected="a CSV file in UTF-8, its first line the names of the columns",
            got="nothing" if isinstance(error, FileNotFoundError) else error,
            next_step="correct `path` in the recipe, or the file",
        ) from None
    return {name: [row[name] for row in rows] for name in reader.fieldnames or ()}
