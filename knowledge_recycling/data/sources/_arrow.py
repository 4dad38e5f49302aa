"""Parquet files and Arrow tables as plain columns; needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knowledge_recycling.errors import DataError
from knowledge_recycling.extras import require


@contextmanager
def reading_arrow(where: object, expected: str) -> Iterator[None]:
    """Turns what pyarrow raises on a missing or damaged file into a `DataError`."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, MemoryError, NotImplementedError) as error:
        raise DataError(  # all of pyarrow's errors are of these types
            "the file of images cannot be read",
            where=where,
            expected=expected,
            got="nothing" if isinstance(error, FileNotFoundError) else error,
            next_step="correct the path, or write the file again",
        ) from None


def read_parquet(path: Path, extra: str) -> Any:
    """Returns the Parquet file as a `pyarrow.Table`.

    Raises:
        KRError: pyarrow is not installed.
        DataError: The file is missing or damaged.
    """
    parquet = require("pyarrow.parquet", extra)
    with reading_arrow(path, "an undamaged Parquet file"):
        with parquet.ParquetFile(path) as file:
            table = file.read(use_threads=False)
        table.validate(full=True)  # text that is no UTF-8 is found here, not by its reader
        return table


def columns_of(table: Any) -> dict[str, list[Any]]:
    """Returns the values of each column that can hold an image, label, group or split."""
    return {
        name: column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
        if _may_be_used(column.type)
    }


def _may_be_used(kind: Any) -> bool:
    types: Any = require("pyarrow", "table").types
    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0)
    if types.is_dictionary(kind):
        return _may_be_used(kind.value_type)
    tests = (
        types.is_integer, types.is_floating, types.is_boolean, types.is_string,
        types.is_large_string, types.is_binary, types.is_large_binary,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def class_names_of(table: Any, label_column: str) -> list[str] | None:
    """Returns the names of the classes that the library `datasets` left in the table, if any."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(metadata or "{}")["info"]["features"][label_column]
    except (ValueError, KeyError, TypeError):
        return None
    names = feature.get("names") if isinstance(feature, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list) else None
