"""An .npz archive in MedMNIST's form: `{train,val,test}_images` and `{train,val,test}_labels`.

Images are uint8 (or floats in [0, 1]), [N,H,W], [N,H,W,1] or [N,H,W,3]; labels are integers >= 0,
[N] or [N,1], not necessarily 0 to K-1. Optional arrays: `class_names` (strings) and
`{split}_groups` (integers or strings, [N]), over which the recipe's `groups` file takes precedence.
Splits that are absent are made from `train`. Pickled objects are never loaded.

Arrays of an archive that is not compressed (`numpy.savez`) are memory-mapped, so that a set may be
larger than the memory; its images must be uint8 and all three splits given, or they are copied.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
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

CHUNK = 1 << 20
_LOCAL_NAME_AND_EXTRA = 26
"""Of a zip file's local header: where the lengths stand of the name and the extra field after
which the data begins (APPNOTE.TXT, 4.3.7)."""

_KNOWN = {"class_names"} | {
    f"{split}_{part}" for split in SPLIT_NAMES for part in ("images", "labels", "groups")
}


class Config(SourceConfig):
    """An archive of arrays."""

    kind: Literal["npz"] = "npz"
    path: LocalPath
    """The .npz file. One that is not compressed (`numpy.savez`), of uint8 images and all three
    splits, may be larger than the memory: it is read as it is needed."""


def load(config: Config) -> FoundSplits:
    """Returns the splits of the archive.

    Raises:
        DataError: The file is missing or damaged, or an array is missing or breaks a rule above.
    """
    with _opened(config.path) as archive:
        names = _class_names(archive, config.path)
        found = splits_from_arrays(_Arrays(archive, config.path), config.path, names)
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


class _Arrays(Mapping[str, Array]):
    """The arrays of an archive, memory-mapped where they are not compressed."""

    def __init__(self, archive: NpzFile, path: Path) -> None:
        self._archive = archive
        self._path = path

    def __len__(self) -> int:
        return len(self._archive.files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.files)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the array
        return name in self._archive.files

    def __getitem__(self, name: str) -> Array:
        mapped = _mapped(self._archive.zip, f"{name}.npy", self._path)
        return self._archive[name] if mapped is None else mapped


def _mapped(archive: zipfile.ZipFile | None, entry: str, path: Path) -> Array | None:
    """Returns an array as it lies in the file; `None` if it is compressed or not a plain one."""
    info = None if archive is None else archive.NameToInfo.get(entry)
    if archive is None or info is None or info.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(info) as whole:
        while whole.read(CHUNK):  # raises where the checksum is wrong
            pass
    with path.open("rb") as stream:
        stream.seek(info.header_offset + _LOCAL_NAME_AND_EXTRA)
        stream.seek(sum(struct.unpack("<HH", stream.read(4))), os.SEEK_CUR)
        start = stream.tell()
        if np.lib.format.read_magic(stream) != (1, 0):
            return None
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        size = dtype.itemsize * math.prod(shape)
        if dtype.hasobject or not size or stream.tell() - start + size != info.file_size:
            return None
        order: Literal["F", "C"] = "F" if fortran_order else "C"
        return np.memmap(stream, dtype, "r", stream.tell(), shape, order)


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
