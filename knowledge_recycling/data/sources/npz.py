"""An .npz archive in MedMNIST's form: `{train,val,test}_images` and `{train,val,test}_labels`.

Images are uint8 (or floats in [0, 1]), [N,H,W], [N,H,W,1] or [N,H,W,3]; labels are integers >= 0,
[N] or [N,1], not necessarily 0 to K-1. Optional arrays: `class_names` (strings) and
`{split}_groups` (integers or strings, [N]), over which the recipe's `groups` file takes precedence.
Splits that are absent are made from `train`. Pickled objects are never loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.npyio import NpzFile

from knowledge_recycling.data.images import FoundSplits
from knowledge_recycling.data.sources import SPLIT_NAMES, LocalPath, SourceConfig
from knowledge_recycling.data.sources._arrays import Array, reading, splits_from_arrays
from knowledge_recycling.data.sources._groups import with_row_groups
from knowledge_recycling.errors import DataError

_KNOWN = {"class_names"} | {
    f"{split}_{part}" for split in SPLIT_NAMES for part in ("images", "labels", "groups")
}


class Config(SourceConfig):
    """An archive of arrays."""

    kind: Literal["npz"] = "npz"
    path: LocalPath
    """The .npz file."""


def load(config: Config) -> FoundSplits:
    """Returns the splits of the archive.

    Raises:
        DataError: The file is missing or damaged, or an array is missing or breaks a rule above.
    """
    with _opened(config.path) as archive:
        names = _class_names(archive, config.path)
        found = splits_from_arrays(archive, config.path, names)
        unused = sorted(set(archive.files) - _KNOWN)
    if unused:
        warnings.warn(f"{config.path}: arrays not used: {', '.join(unused)}", stacklevel=2)
    return with_row_groups(found, config.groups)


@contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    with reading(path):
        stream = path.open("rb")
    with stream:  # NumPy leaves the file open where it finds it damaged
        with reading(path):
            archive = np.load(stream, allow_pickle=False)
        if not isinstance(archive, NpzFile):
            raise DataError(
                "the file is a single array",
                where=path,
                expected="an .npz archive with train_images and train_labels",
                got=f"an array of shape {list(archive.shape)}",
                next_step="save images and labels together with numpy.savez_compressed",
            )
        yield archive


def _class_names(archive: NpzFile, path: Path) -> list[str] | None:
    if "class_names" not in archive.files:
        return None
    with reading(f"{path}: class_names"):
        names: Array = archive["class_names"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(
            "the class names are not a list of strings",
            where=f"{path}: class_names",
            expected="a one-dimensional array of str",
            got=f"{names.dtype}, {list(names.shape)}",
            next_step="save numpy.array(['first', 'second', ...])",
        )
    return [str(name) for name in names]
