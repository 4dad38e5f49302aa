"""A folder of images through the student of a bundle, to a table."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from knowledge_recycling.data.sources._decoding import FORMATS, decode
from knowledge_recycling.errors import DataError
from knowledge_recycling.releasing.student import ReleasedStudent
from knowledge_recycling.storage import write_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def predict_folder(student: ReleasedStudent, folder: Path, table: Path) -> int:
    """Writes the probabilities of every image below `folder` as CSV; returns their number.

    Images are decoded as the source `folder` does: upright, centre square, scaled, 8 bit.

    Raises:
        DataError: There is no image, or one cannot be read.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise DataError(
            "there are no images to classify",
            where=folder,
            expected=f"files ending in {', '.join(SUFFIXES)}",
        )
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["file", "class", *student.classes])
    for path in paths:
        [chances] = student.predict(_pixels(path, student.shape)[None])
        best = student.classes[int(chances.argmax())]
        rows.writerow([path.relative_to(folder).as_posix(), best, *(f"{p:.6f}" for p in chances)])
    write_text(table, text.getvalue())
    return len(paths)


def _pixels(path: Path, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    try:
        decoded = decode(path, shape[1], "grey" if shape[0] == 1 else "rgb")
    except Exception as error:  # decoders raise a dozen types on damaged files
        raise DataError(
            "an image cannot be read",
            where=path,
            expected=f"a {', '.join(FORMATS)} file",
            got=error,
            next_step="repair or remove it",
        ) from error
    pixels: npt.NDArray[Any] = decoded.pixels
    if pixels.dtype == np.uint16:
        full = 2 ** max(8, decoded.peak.bit_length()) - 1
        pixels = np.rint(np.minimum(pixels / full, 1.0) * 255).astype(np.uint8)
    return np.broadcast_to(pixels, (shape[0], *pixels.shape[1:]))
