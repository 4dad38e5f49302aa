"""The MedMNIST sets (Yang et al. 2023, Scientific Data 10:41) through their own package.

Needs the extra `medmnist`. Its loader reads, and only where the recipe says `download = true`
fetches and verifies, `{name}.npz` or `{name}_{size}.npz` in the local folder `root`. The official
train, val and test splits are kept. Sets with several labels per image and volumes are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from knowledge_recycling.config import did_you_mean
from knowledge_recycling.data.images import FoundSplits
from knowledge_recycling.data.sources import SPLIT_NAMES, LocalPath, SourceConfig
from knowledge_recycling.data.sources._arrays import (
    Array,
    is_there,
    reading,
    splits_from_arrays,
)
from knowledge_recycling.data.sources._groups import with_row_groups
from knowledge_recycling.errors import DataError, RecipeError
from knowledge_recycling.extras import require


class Config(SourceConfig):
    """A MedMNIST set."""

    kind: Literal["medmnist"] = "medmnist"
    name: str
    """Name in MedMNIST's table, e.g. "breastmnist"."""
    root: LocalPath
    """Local folder of MedMNIST's files."""
    size: int = 28
    """Pixels per side: 28, 64, 128 or 224."""
    download: bool = False
    """Fetch the file from MedMNIST's archive if it is not in `root`."""


def load(config: Config) -> FoundSplits:
    """Returns the official splits of the set.

    Raises:
        KRError: The medmnist package is not installed.
        RecipeError: It has no such set or size.
        DataError: The set is multi-label or 3-D, or its file is absent or damaged.
    """
    info, loader = _entry(config)
    path = _file(config, loader)
    arrays: dict[str, Array] = {}
    for split in SPLIT_NAMES:
        with reading(path):
            part = loader(split=split, root=str(config.root), size=config.size)
        arrays |= {f"{split}_images": part.imgs, f"{split}_labels": part.labels}
    class_names = [info["label"][str(label)] for label in range(len(info["label"]))]
    return with_row_groups(splits_from_arrays(arrays, path, class_names), config.groups)


def _entry(config: Config) -> tuple[dict[str, Any], Any]:
    """Returns the set's row of MedMNIST's table and its loader class."""
    medmnist = require("medmnist", "medmnist")
    info = medmnist.INFO.get(config.name)
    if info is None:
        raise RecipeError(
            f"MedMNIST has no set '{config.name}'",
            where="name of source 'medmnist'",
            expected=f"one of {', '.join(medmnist.INFO)}",
            got=config.name,
            next_step=did_you_mean(config.name, medmnist.INFO),
        )
    loader = getattr(medmnist, info["python_class"])
    _check_usable(config, info, loader)
    return info, loader


def _check_usable(config: Config, info: dict[str, Any], loader: Any) -> None:
    if "multi-label" in info["task"] or info["python_class"].endswith("3D"):
        raise DataError(
            f"the set '{config.name}' cannot be used",
            where="name of source 'medmnist'",
            expected="two-dimensional images with one class each",
            got="volumes" if info["python_class"].endswith("3D") else "several labels per image",
            next_step="choose another set, or save one label per image as npz",
        )
    if config.size not in loader.available_sizes:
        raise RecipeError(
            f"MedMNIST has no '{config.name}' of size {config.size}",
            where="size of source 'medmnist'",
            expected=f"one of {', '.join(map(str, loader.available_sizes))}",
            got=config.size,
            next_step="correct the size",
        )


def _file(config: Config, loader: Any) -> Path:
    """Returns the path of the set's file, fetched if it is absent and the recipe says so."""
    suffix = "" if config.size == 28 else f"_{config.size}"
    path = config.root / f"{config.name}{suffix}.npz"
    expected = f"MedMNIST's '{path.name}' in `root`"
    if not is_there(path, "the file of the set", expected, download=config.download):
        _fetch(config, loader, path)
    return path


def _fetch(config: Config, loader: Any, path: Path) -> None:
    config.root.mkdir(parents=True, exist_ok=True)
    try:
        loader(split="train", root=str(config.root), size=config.size, download=True)
    except RuntimeError as error:
        raise DataError(
            "MedMNIST's file could not be fetched",
            where=path,
            expected=f"'{path.name}' with the checksum in MedMNIST's table",
            got=" ".join(str(error).split()),
            next_step="check the network, or put the file there by hand",
        ) from None
