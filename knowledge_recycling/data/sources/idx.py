"""The idx files of MNIST and Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), plain or gzipped.

`train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and, for `test`, the same with `t10k`, in one
folder: torchvision's `raw`, or what Debian's package `dataset-fashion-mnist` installs in
/usr/share/datasets/fashion-mnist. Format: two zero bytes, the type (8: uint8), the number of
dimensions, each dimension as big-endian uint32, then the bytes (LeCun, the MNIST database).
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import Literal

import numpy as np

from knowledge_recycling.data.images import FoundSplits
from knowledge_recycling.data.sources import LocalPath, SourceConfig
from knowledge_recycling.data.sources._arrays import Array, reading, splits_from_arrays
from knowledge_recycling.data.sources._groups import with_row_groups
from knowledge_recycling.errors import DataError

FILES = {"train": "train", "test": "t10k"}
"""What the files of a split begin with."""
UINT8 = 8
FORM = "an undamaged idx file of unsigned bytes"


class Config(SourceConfig):
    """A set in the files of MNIST."""

    kind: Literal["idx"] = "idx"
    path: LocalPath
    """The folder of the files."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in order of their labels; unset: the labels."""


def load(config: Config) -> FoundSplits:
    """Returns `train`, and `test` if its files are there.

    Raises:
        DataError: A file is missing, damaged or of another form, or the class names do not match.
    """
    arrays: dict[str, Array] = {}
    for split, begin in FILES.items():
        images = _file(config.path, f"{begin}-images-idx3-ubyte")
        if split == "train" or images.exists():
            labels = _file(config.path, f"{begin}-labels-idx1-ubyte")
            arrays[f"{split}_images"] = read_idx(images, dimensions=3)
            arrays[f"{split}_labels"] = read_idx(labels, dimensions=1)
    found = splits_from_arrays(arrays, config.path, config.class_names or None)
    return with_row_groups(found, config.groups)


def _file(folder: Path, name: str) -> Path:
    zipped = folder / f"{name}.gz"
    return zipped if zipped.exists() else folder / name


def read_idx(path: Path, dimensions: int) -> Array:
    """Returns the array of an idx file, gzipped if its name ends so.

    Raises:
        DataError: It is missing or damaged, holds no bytes, or has other dimensions.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with reading(path, FORM), opened(path, "rb") as stream:
        head = stream.read(4)
        if head != bytes([0, 0, UINT8, dimensions]):
            raise DataError(
                "the file has another form",
                where=path,
                expected=f"the bytes 0, 0, {UINT8}, {dimensions} first: {dimensions} dimensions",
                got=list(head),
                next_step="put the files of MNIST or Fashion-MNIST there under their own names",
            )
        shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
        content = stream.read(math.prod(shape) + 1)
    if len(content) != math.prod(shape):
        raise DataError(
            "the file is not as long as it says",
            where=path,
            expected=f"{math.prod(shape)} bytes of an array {list(shape)}",
            got=f"{len(content)} bytes" if len(content) < math.prod(shape) else "more bytes",
            next_step="copy or download it again",
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
