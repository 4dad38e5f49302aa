"""Data sources: one file of this folder adds one kind of image set.

A source has a `Config`, a `SourceConfig` whose `kind` defaults to the name of its file, and
`load(config) -> FoundSplits`, which returns the splits it found, at least `train`; those it did
not find are made by `data.splits`. Importing a source does no work and needs no optional library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

from pydantic import AfterValidator, Field

from knowledge_recycling.config import PluginConfig
from knowledge_recycling.data.images import SplitName

SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)


def _with_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from None


LocalPath = Annotated[Path, AfterValidator(_with_home)]
"""A path on this machine; a relative one starts at the current folder, `~` is the home folder."""


class SourceConfig(PluginConfig):
    """What every source understands: how missing splits are made from `train`."""

    val_fraction: float = Field(0.15, gt=0, lt=0.5)
    """Share of the found `train` images that becomes `val` where the set has none."""
    test_fraction: float = Field(0.2, gt=0, lt=0.5)
    """Share of the found `train` images that becomes `test` where the set has none."""
    split_seed: int = 0
    """Decides which images go to the splits that are made, apart from the seed of the run."""
    groups: LocalPath | None = None
    """CSV with the group (patient, slide...) of every image; no group is cut in two by a split
    that is made. Columns: `group`, and either `name` (path of the image below the folder, with `/`,
    or as a table has it) or `index` (row in the split, from 0), the latter with `split` unless all
    rows are of `train`."""
