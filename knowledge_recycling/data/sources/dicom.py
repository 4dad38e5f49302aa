"""DICOM files, in one folder per class or listed by a table (extra `dicom`).

A folder has the form of the source `folder`, a table that of the source `table`. Only the elements
listed in `ELEMENTS`, and the one that names the group, are read: no name, date or other element
ever enters this process. The group is kept as a number, and never written or shown. Files are found
by their content, whatever they are called. How a file becomes an image:

* stored values are rescaled (slope and intercept, or the modality table), then windowed: by
  `window` if given, else by the file's own first window or table of values of interest;
* without any window they count as 16-bit grey, see the source `folder`; where they are negative or
  too large for that, the file is refused until `window` is given;
* MONOCHROME1 is inverted, so that larger always means brighter;
* of colour the upper 8 bits are kept; palettes and YBR become RGB;
* several frames count as unreadable, and compressions that need a package that is not installed.

Shapes: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import field_validator

from knowledge_recycling.data.images import FoundSplits
from knowledge_recycling.data.sources import LocalPath
from knowledge_recycling.data.sources._decoding import (
    LARGEST_16_BIT,
    Channels,
    Content,
    Decoded,
    centre_square,
    narrow,
    wide,
)
from knowledge_recycling.data.sources._listing import list_images
from knowledge_recycling.data.sources._squares import Decoder, decoded_splits
from knowledge_recycling.data.sources._tables import ColumnsConfig, splits_of_rows
from knowledge_recycling.data.sources.table import read_table
from knowledge_recycling.extras import require

ELEMENTS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData",
)  # fmt: skip
"""All that is read of a file."""

Values = npt.NDArray[np.float64]


class Config(ColumnsConfig):
    """DICOM files in class folders, or listed by a table."""

    kind: Literal["dicom"] = "dicom"
    path: LocalPath
    """The folder that holds the class folders, or a table (CSV, Parquet) of files with labels."""
    window: tuple[float, float] | None = None
    """Centre and width, in rescaled units (Hounsfield for CT), for all images; unset: each file's
    own first window."""
    group_by: str = "PatientID"
    """Keyword of the element whose value groups images; `none`: no groups. A group column of the
    table and a file of `groups` come first."""

    @field_validator("window")
    @classmethod
    def _positive_width(cls, window: tuple[float, float] | None) -> tuple[float, float] | None:
        if window is not None and not (window[1] >= 1 and np.isfinite(window).all()):
            raise ValueError("the width of the window must be at least 1")
        return window


def load(config: Config) -> FoundSplits:
    """Returns the splits of the folder or table.

    Raises:
        KRError: pydicom is not installed, or pyarrow for a table in Parquet.
        DataError: The folder or table is missing or has no images, a link or path leads out of
            it, an image cannot be read, or has no group although others do.
    """
    pydicom = require("pydicom", "dicom")
    decoder = Decoder(
        shorter_side=partial(_shorter_side, pydicom),
        decode=partial(_decode, pydicom, config),
        expected="undamaged DICOM files of one frame",
    )
    if config.path.is_file():
        rows = read_table(config.path, config.path.parent, config.label_column)
        return splits_of_rows([rows], config, config.path, decoder)
    found = list_images(config.path, is_dicom, "class folders with DICOM files")
    return decoded_splits(found, config, config.path, decoder=decoder)


def is_dicom(path: Path) -> bool:
    """Returns whether a file calls itself DICOM, by its name or by its first bytes."""
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    if not path.is_file() or path.name == "DICOMDIR":
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _shorter_side(pydicom: Any, content: Content) -> int:
    with _discreet_errors():
        file = pydicom.dcmread(_file(content), specific_tags=["Rows", "Columns"])
        return int(min(file.Rows, file.Columns))


def _file(content: Content) -> Path:
    if not isinstance(content, Path) or (content.exists() and not content.is_file()):
        raise _UnreadableError("it is no file")
    return content


class _UnreadableError(ValueError):
    """Why a file cannot be used, in words that quote none of its values but numbers."""


@contextmanager
def _discreet_errors() -> Iterator[None]:
    """Replaces the words of errors that may quote an element by their type."""
    try:
        yield
    except _UnreadableError:
        raise
    except Exception as error:  # pydicom raises a dozen types on damaged files
        raise _UnreadableError(f"damaged or incomplete: {type(error).__name__}") from None


def _decode(
    pydicom: Any, config: Config, content: Content, side: int, channels: Channels
) -> Decoded:
    wanted = [*ELEMENTS, *([] if config.group_by == "none" else [config.group_by])]
    with _discreet_errors():
        file = pydicom.dcmread(_file(content), specific_tags=wanted)
        _check(pydicom, file)
        colour = file.SamplesPerPixel > 1 or file.PhotometricInterpretation == "PALETTE COLOR"
        image = (_colour if colour else partial(_grey, config=config))(pydicom, file)
        group = str(file.get(config.group_by) or "") or None
    if image.mode == "F" and not _has_window(file, config):
        square = wide(image, side)
    elif image.mode == "F":
        pixels = np.asarray(centre_square(image, side)).clip(0, 255)  # bicubic overshoots
        square = Decoded(np.rint(pixels)[None].astype(np.uint8), peak=0)
    else:
        square = narrow(image, side, channels)
    return Decoded(square.pixels, square.peak, group)


def _check(pydicom: Any, file: Any) -> None:
    if int(file.get("NumberOfFrames") or 1) != 1:
        raise _UnreadableError(f"it has {int(file.NumberOfFrames)} frames, expected one")
    if "PixelData" not in file:
        raise _UnreadableError("it has no pixels of whole numbers")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and file.Rows * file.Columns > limit:
        raise _UnreadableError(
            f"it has {file.Rows} x {file.Columns} pixels, at most {limit} allowed"
        )
    syntax = file.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax.is_encapsulated:
        decoder = pydicom.pixels.get_decoder(syntax)
        if not decoder.is_available:
            raise _UnreadableError(
                f"its compression, {syntax.name}, needs another package: pylibjpeg"
            )


def _colour(pydicom: Any, file: Any) -> Image.Image:
    """Returns the image in mode RGB."""
    pixels = pydicom.pixels.pixel_array(file)  # YBR has become RGB
    bits = int(file.BitsAllocated)
    if file.PhotometricInterpretation == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, file)
        bits = 8 * pixels.itemsize
    return Image.fromarray((pixels >> (bits - 8)).astype(np.uint8))


def _grey(pydicom: Any, file: Any, config: Config) -> Image.Image:
    """Returns the image in mode F: windowed to 0..255, or without a window its rescaled values."""
    rescale = pydicom.pixels.apply_modality_lut
    stored = pydicom.pixels.pixel_array(file)  # [H, W], whole numbers
    dark_is_large = file.PhotometricInterpretation == "MONOCHROME1"
    if _has_window(file, config):
        shown = _windowed(pydicom, rescale(stored, file), file, config)
        values = 255 * (1 - shown if dark_is_large else shown)
    else:
        values = rescale(_mirrored(stored, file) if dark_is_large else stored, file)
        if values.min() < 0 or values.max() > LARGEST_16_BIT:
            found = f"{values.min():g} to {values.max():g}"
            raise _UnreadableError(f"its values are {found} without a window: set `window`")
    return Image.fromarray(values.astype(np.float32))


def _mirrored(stored: npt.NDArray[Any], file: Any) -> npt.NDArray[Any]:
    """Returns stored values mirrored in the middle of what their bits can hold."""
    signed = int(file.PixelRepresentation)
    mirrored: npt.NDArray[Any] = (-1 if signed else 2 ** int(file.BitsStored) - 1) - stored
    return mirrored


def _has_window(file: Any, config: Config) -> bool:
    given, table = config.window is not None, bool(file.get("VOILUTSequence"))
    own = [file.get(name) is not None for name in ("WindowCenter", "WindowWidth")]
    return given or table or all(own)


def _windowed(pydicom: Any, values: npt.NDArray[Any], file: Any, config: Config) -> Values:
    """Returns the values as the window shows them, 0 (dark) to 1."""
    if config.window is not None:
        return linear_window(values, *config.window)
    if file.get("VOILUTSequence"):
        whole = np.rint(values).astype(np.int64)  # indices of the table
        peak = 2.0 ** int(file.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return np.asarray(pydicom.pixels.apply_voi(whole, file) / peak)
    centre, width = _first(file.WindowCenter), _first(file.WindowWidth)
    function = file.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (values - centre) / width)))
    if function == "LINEAR_EXACT":
        return np.asarray(((values - centre) / width + 0.5).clip(0, 1))
    return linear_window(values, centre, width)


def _first(value: Any) -> float:
    return float(value if isinstance(value, int | float | str) else value[0])


def linear_window(values: npt.NDArray[Any], centre: float, width: float) -> Values:
    """Returns `values` shown by a linear window, 0 to 1 (DICOM PS3.3 C.11.2.1.2.1).

    >>> linear_window(np.array([-1.0, 0.0, 127.5, 255.0, 300.0]), 128.0, 256.0).tolist()
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    if width <= 1:  # a step
        return np.asarray(values > centre - 0.5, dtype=np.float64)
    return np.asarray(((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1))
