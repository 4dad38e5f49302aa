"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in torchvision's layout, which is the archive's own.

`root/cifar-10-batches-py/data_batch_1` to `_5` and `test_batch`, or `root/cifar-100-python/train`
and `test`, each with its file of class names. The files are pickles, which are never loaded: their
opcodes are listed (`pickletools.genops`, which runs nothing) and the string of pixels, the labels
and the names are picked out.
"""

from __future__ import annotations

import pickletools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from knowledge_recycling.data.images import FoundSplits
from knowledge_recycling.data.sources import LocalPath, SourceConfig
from knowledge_recycling.data.sources._arrays import (
    Array,
    is_there,
    reading,
    splits_from_arrays,
)
from knowledge_recycling.data.sources._groups import with_row_groups
from knowledge_recycling.errors import DataError

SIDE = 32
FORM = "an undamaged Python file of CIFAR"
KEYS = {
    "batch_label",
    "coarse_label_names",
    "coarse_labels",
    "data",
    "filenames",
    "fine_label_names",
    "fine_labels",
    "label_names",
    "labels",
    "num_cases_per_batch",
    "num_vis",
}
"""What the files are dictionaries of."""
STRINGS = {"BINSTRING", "SHORT_BINSTRING", "STRING", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE"}
NUMBERS = {"BININT", "BININT1", "BININT2", "INT"}


class Config(SourceConfig):
    """A CIFAR set."""

    kind: Literal["cifar"] = "cifar"
    name: Literal["cifar10", "cifar100"] = "cifar10"
    """Ten classes, or a hundred (the fine labels)."""
    root: LocalPath
    """Local folder that holds `cifar-10-batches-py` or `cifar-100-python`."""
    download: bool = False
    """Fetch the archive from its authors' page if the folder is not in `root`."""


def load(config: Config) -> FoundSplits:
    """Returns the official `train` and `test`.

    Raises:
        DataError: A file is missing, damaged or of another form.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    official: Any = CIFAR10 if config.name == "cifar10" else CIFAR100
    folder = _folder(config, official)
    arrays: dict[str, Array] = {}
    for split, listed in (("train", official.train_list), ("test", official.test_list)):
        parts = [read_batch(folder / name) for name, _ in listed]
        arrays[f"{split}_images"] = np.concatenate([images for images, _ in parts])
        arrays[f"{split}_labels"] = np.concatenate([labels for _, labels in parts])
    meta = official.meta
    names = contents(folder / meta["filename"])[meta["key"]]
    return with_row_groups(splits_from_arrays(arrays, folder, names), config.groups)


def _folder(config: Config, official: Any) -> Path:
    folder: Path = config.root / official.base_folder
    expected = f"the files of the archive '{official.filename}'"
    if not is_there(folder, "the set", expected, download=config.download):
        from torchvision.datasets.utils import download_and_extract_archive

        with reading(folder, f"the archive '{official.filename}' with its checksum"):
            download_and_extract_archive(
                official.url, str(config.root), filename=official.filename, md5=official.tgz_md5
            )
    return folder


def read_batch(path: Path) -> tuple[Array, Array]:
    """Returns images uint8 [N,H,W,C] and labels [N] of one file.

    Raises:
        DataError: The file is missing or damaged, or has not 3,072 pixels for each label.
    """
    found = contents(path)
    labels = found["fine_labels"] or found["labels"]
    pixels = max(map(str, found["data"]), key=len, default="").encode("latin-1")
    if not labels or len(pixels) != len(labels) * 3 * SIDE**2:
        raise DataError(
            "the file has another form",
            where=path,
            expected=f"labels, and {3 * SIDE**2} pixels for each",
            got=f"{len(labels)} labels, {len(pixels)} pixels",
            next_step="copy or download it again",
        )
    images = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 3, SIDE, SIDE)
    return np.moveaxis(images, 1, 3), np.array(labels, dtype=np.int64)


def contents(path: Path) -> Mapping[str, Sequence[Any]]:
    """Returns the strings and numbers that follow each key in a file; nothing of it is executed.

    Raises:
        DataError: The file is missing, or is no whole pickle.
    """
    found: dict[str, list[Any]] = defaultdict(list)
    key = ""
    with reading(path, FORM), path.open("rb") as stream:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in STRINGS and argument in KEYS:
                key = str(argument)
            elif opcode.name in STRINGS | NUMBERS:
                found[key].append(argument)
    return found
