"""Rows of a table as listed images: which column holds the image, label, group and split.

A table is a mapping of column names to their values, N each, whatever file it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knowledge_recycling.data.images import FoundSplits, SplitName
from knowledge_recycling.data.sources._decoding import Content
from knowledge_recycling.data.sources._listing import SPLIT_FOLDERS, stays_inside
from knowledge_recycling.data.sources._squares import Decoder, Item, SquaresConfig, decoded_splits
from knowledge_recycling.errors import DataError


class ColumnsConfig(SquaresConfig):
    """What every source of rows understands: which columns to read."""

    image_column: str | None = None
    """Column of images, as paths or as the bytes of files; unset: `image`, else `path`."""
    label_column: str = "label"
    """Column of classes, as names or numbers."""
    group_column: str | None = None
    """Column of groups (patient, slide...); unset: `group`, if there is one."""
    split_column: str | None = None
    """Column that says train, val (or valid, validation) or test; unset: `split`, if there is
    one; without it all images are of `train`."""


@dataclass(frozen=True)
class Rows:
    """The rows of one file, or of several of one split."""

    columns: Mapping[str, Sequence[Any]]
    """N values by column; images are paths, bytes, or mappings of `bytes` and `path`."""
    where: object
    """Named in errors."""
    root: Path
    """Folder that paths of images start at, and must not leave."""
    split: SplitName = "train"
    """Of the rows where no column says it."""
    class_names: Sequence[str] | None = field(default=None)
    """Names that numbers in the label column stand for, if the file has them."""


def splits_of_rows(
    tables: Sequence[Rows], config: ColumnsConfig, where: object, decoder: Decoder | None = None
) -> FoundSplits:
    """Returns the splits that the rows describe, in their order.

    Raises:
        DataError: A column is missing, a row is incomplete, a path leads out of the folder, or an
            image cannot be read.
    """
    items: dict[SplitName, list[Item]] = {}
    labels: set[str] = set()
    for rows in tables:
        read = _Reader(rows, config)
        for number in range(read.num_rows):
            split = read.split(number)
            part = items.setdefault(split, [])
            part.append(read.item(number, f"{split}/{len(part)}"))
            labels.add(part[-1].class_name)
    if not labels:
        raise DataError(
            "the table has no rows",
            where=where,
            expected="one row per image",
            next_step="add rows, or correct the path",
        )
    classes = _in_order(labels, [rows.class_names for rows in tables])
    return decoded_splits(items, config, where, classes=classes, decoder=decoder)


def _in_order(labels: set[str], given: Sequence[Sequence[str] | None]) -> list[str]:
    """Returns the classes as the file orders them; else numbers by value, or names sorted."""
    names = next((names for names in given if names is not None), None)
    if names is not None:
        return [name for name in dict.fromkeys(names) if name in labels]
    numbers = all(label.isdecimal() for label in labels)
    return sorted(labels, key=(lambda label: (int(label), label)) if numbers else None)


class _Reader:
    """Reads the rows of one table."""

    def __init__(self, rows: Rows, config: ColumnsConfig) -> None:
        self.rows = rows
        image = config.image_column or ("image" if "image" in rows.columns else "path")
        self.images = self._column(image, "image_column")
        self.labels = self._column(config.label_column, "label_column")
        self.groups = self._optional(config.group_column, "group")
        self.splits = self._optional(config.split_column, "split")
        self.num_rows = len(self.images)

    def _optional(self, given: str | None, usual: str) -> Sequence[Any] | None:
        if given is None and usual not in self.rows.columns:
            return None
        return self._column(given or usual, f"{usual}_column")

    def _column(self, name: str, key: str) -> Sequence[Any]:
        if name not in self.rows.columns:
            raise DataError(
                f"the table lacks the column '{name}'",
                where=self.rows.where,
                expected=f"the column that `{key}` in the recipe names",
                got=", ".join(self.rows.columns) or "no column at all",
                next_step=f"set `{key}` to the column that is meant",
            )
        return self.rows.columns[name]

    def item(self, number: int, name: str) -> Item:
        """Returns the image of a row; `name` is its own where it has no path."""
        value = _encoded(self.images[number])
        group = None if self.groups is None else self.groups[number]
        return Item(
            name=value if isinstance(value, str) else name,
            class_name=self._class_name(number),
            content=self._content(value, number),
            group=None if group in (None, "") or group != group else str(group),  # or NaN
        )

    def split(self, number: int) -> SplitName:
        """Returns the split of a row."""
        if self.splits is None:
            return self.rows.split
        found = SPLIT_FOLDERS.get(str(self.splits[number]).strip().lower())
        if found is None:
            raise self._wrong(number, "split", "train, val or test", self.splits[number])
        return found

    def _class_name(self, number: int) -> str:
        label, names = self.labels[number], self.rows.class_names
        if isinstance(label, int) and names is not None and 0 <= label < len(names):
            return str(names[label])
        known = isinstance(label, str | int) and names is None
        if not known or label == "" or (isinstance(label, int) and label < 0):
            expected = "a name, or a whole number from 0"
            raise self._wrong(number, "label", expected if names is None else names, label)
        return str(label)

    def _content(self, value: Any, number: int) -> Content:
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            expected = "a path, or the bytes of an image file"
            raise self._wrong(number, "image", expected, type(value).__name__)
        path = self.rows.root / value
        if "\0" in value or not stays_inside(path, self.rows.root):
            raise self._wrong(number, "path", f"a file in {self.rows.root}", value)
        return path

    def _wrong(self, number: int, what: str, expected: object, got: object) -> DataError:
        return DataError(
            f"a row has a wrong {what}",
            where=f"{self.rows.where}, row {number} (from 0)",
            expected=expected,
            got=repr(got),
            next_step="correct or remove the row",
        )


def _encoded(value: Any) -> Any:
    """Returns the bytes or else the path of an image as the library `datasets` stores it."""
    if not isinstance(value, Mapping):
        return value
    return value.get("path") if value.get("bytes") is None else value["bytes"]
