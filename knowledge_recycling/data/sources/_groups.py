"""The group of every image, read from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from knowledge_recycling.data.images import FoundSplits, SplitName
from knowledge_recycling.errors import DataError


def with_row_groups(found: FoundSplits, table: Path | None) -> FoundSplits:
    """Returns `found` with the groups of `table`, whose images are known by split and row.

    Raises:
        DataError: See `with_groups`.
    """
    keys = {name: [f"{name}/{row}" for row in range(len(part))] for name, part in found.items()}
    return with_groups(found, keys, table)


def with_groups(
    found: FoundSplits, keys: Mapping[SplitName, Sequence[str]], table: Path | None
) -> FoundSplits:
    """Returns `found` with the groups of `table`; unchanged without a table.

    Args:
        found: Splits of N images each.
        keys: For each split the N names that the table calls its images by.
        table: CSV file, see `SourceConfig.groups`.

    Raises:
        DataError: The table cannot be read, contradicts itself or leaves out an image.
    """
    if table is None:
        return found
    group_of = _read(table)
    missing = [key for name in found for key in keys[name] if key not in group_of]
    if missing:
        raise DataError(
            f"{len(missing)} images have no group",
            where=table,
            expected="a row for every image",
            got=f"none for {', '.join(missing[:5])}",
            next_step="add the rows, or give every image without a group one of its own",
        )
    return _coded(found, {name: [group_of[key] for key in keys[name]] for name in found})


def with_known_groups(
    found: FoundSplits, groups: Mapping[SplitName, Sequence[str | None]], where: object
) -> FoundSplits:
    """Returns `found` with `groups`, N per split; unchanged where no image has one.

    Raises:
        DataError: Some images have a group and others have none.
    """
    known = [group is not None for part in groups.values() for group in part]
    if not any(known):
        return found
    if not all(known):
        raise DataError(
            f"{known.count(False)} of {len(known)} images have no group",
            where=where,
            expected="a group for every image, or for none",
            got=f"the first is image {known.index(False)}, counted from 0 over all splits",
            next_step="complete the groups, or give them all in a file, `groups` in the recipe",
        )
    return _coded(found, {name: [str(group) for group in part] for name, part in groups.items()})


def _coded(found: FoundSplits, groups: Mapping[SplitName, Sequence[str]]) -> FoundSplits:
    """Returns `found` with its groups numbered in their order: names go no further than here."""
    distinct = sorted({group for part in groups.values() for group in part})
    codes = {group: code for code, group in enumerate(distinct)}
    return {
        name: replace(part, groups=np.array([codes[each] for each in groups[name]], np.int64))
        for name, part in found.items()
    }


def _read(table: Path) -> dict[str, str]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            _check_columns(reader.fieldnames or (), table)
            return _group_of_key(reader, table)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(
            "the table of groups cannot be read",
            where=table,
            expected="a CSV file in UTF-8",
            got=error,
            next_step="correct `groups` in the recipe, or the file",
        ) from None


def _check_columns(columns: Sequence[str], table: Path) -> None:
    if "group" not in columns or not {"name", "index"} & set(columns):
        raise DataError(
            "the table of groups lacks a column",
            where=table,
            expected="columns 'group' and 'name', or 'group' and 'index'",
            got=", ".join(columns) or "an empty file",
            next_step="name the columns in the first line",
        )


def _group_of_key(reader: csv.DictReader[str], table: Path) -> dict[str, str]:
    group_of: dict[str, str] = {}
    for row in reader:
        key = row["name"] if "name" in row else f"{row.get('split') or 'train'}/{row['index']}"
        group = row["group"]
        if not key or not group or group_of.setdefault(key, group) != group:
            raise DataError(
                "the table of groups has an incomplete or contradicting row",
                where=f"{table}, line {reader.line_num}",
                expected="one group per image",
                got=dict(row),
                next_step="complete or remove the row",
            )
    return group_of
