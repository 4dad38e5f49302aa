"""Sample images of a run as small PNG grids inside the page.

Shapes: K classes, n images of each class, C channels (1 grey, 3 RGB), H rows, W columns.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image

from knowledge_recycling.errors import RunError

Samples = npt.NDArray[np.uint8]
"""[K, n, C, H, W]."""

BUDGET_BYTES = 4 * 2**20
"""Pixels of all grids together; noise does not compress, and the page must stay under 8 MiB."""
_COLUMNS = 5


@dataclass(frozen=True)
class ClassSamples:
    """The grids of one class as `data:` addresses; `None` where the run has no such images."""

    class_name: str
    real: str | None
    synthetic: str | None


def read_samples(
    run_folder: Path, classes: Sequence[str], *, with_real: bool, limit: int
) -> tuple[ClassSamples, ...]:
    """Returns the grids of the first `limit` classes, made smaller where they would not fit.

    Args:
        run_folder: Holds `evaluation/samples.npz`; without it there are no grids.
        classes: K names.
        with_real: `False`: the real images are not even read.
        limit: Most classes to show.

    Raises:
        RunError: The file is damaged, or does not fit the classes.
    """
    real = _read(run_folder, "real", classes)[:limit] if with_real else _nothing(classes)
    synthetic = _read(run_folder, "synthetic", classes)[:limit]
    scale = min(1.0, math.sqrt(BUDGET_BYTES / max(real.nbytes + synthetic.nbytes, 1)))
    return tuple(
        ClassSamples(name, _address(real[index], scale), _address(synthetic[index], scale))
        for index, name in enumerate(classes[:limit])
        if real[index].size or synthetic[index].size
    )


def _nothing(classes: Sequence[str]) -> Samples:
    return np.empty((len(classes), 0, 1, 1, 1), dtype=np.uint8)


def _read(run_folder: Path, kind: str, classes: Sequence[str]) -> Samples:
    path = run_folder / "evaluation" / "samples.npz"
    if not path.is_file():
        return _nothing(classes)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            samples = archive[kind] if kind in archive else _nothing(classes)
    except (OSError, ValueError, BadZipFile) as error:
        raise _damaged(path, kind, error) from None
    if samples.ndim != 5 or len(samples) != len(classes) or samples.dtype != np.uint8:
        raise _damaged(path, kind, f"{samples.dtype} {list(samples.shape)}")
    return samples


def _damaged(path: Path, kind: str, got: object) -> RunError:
    return RunError(
        "the run's sample images cannot be read",
        where=f"{path}: {kind}",
        expected="uint8 [K, n, C, H, W], K as in result.json",
        got=got,
        next_step="write them again with `kr run RECIPE --redo evaluation`",
    )


def _address(images: Samples, scale: float) -> str | None:
    if not images.size:
        return None
    file = io.BytesIO()
    Image.fromarray(_grid(_reduced(images, scale))).save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _reduced(images: Samples, scale: float) -> Samples:
    if scale == 1.0:
        return images
    height, width = (max(1, int(side * scale)) for side in images.shape[2:])
    planes = images.reshape(-1, *images.shape[2:])
    small = [Image.fromarray(each).resize((width, height), Image.Resampling.BOX) for each in planes]
    return np.stack([np.asarray(each) for each in small]).reshape(*images.shape[:2], height, width)


def _grid(images: Samples) -> Samples:
    """Returns [n, C, H, W] as one [rows, columns, C + 1] picture, transparent between the images.

    >>> _grid(np.zeros((7, 1, 8, 8), dtype=np.uint8)).shape
    (17, 44, 2)
    """
    count, channels, height, width = images.shape
    gap = max(1, width // 16)
    opaque = np.full((count, height, width, 1), 255, dtype=np.uint8)
    tiles = np.concatenate([images.transpose(0, 2, 3, 1), opaque], axis=-1)
    padded = np.pad(tiles, ((0, -count % _COLUMNS), (0, gap), (0, gap), (0, 0)))
    rows = padded.reshape(-1, _COLUMNS, height + gap, width + gap, channels + 1)
    return rows.transpose(0, 2, 1, 3, 4).reshape(-1, _COLUMNS * (width + gap), channels + 1)[
        :-gap, :-gap
    ]
