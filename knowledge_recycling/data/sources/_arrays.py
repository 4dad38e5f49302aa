"""Arrays in MedMNIST's form (`train_images`, `train_labels`, ...) turned into checked splits.

Shapes: N images, H rows, W columns, K classes.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from knowledge_recycling.data.images import FoundSplits, ImageSet
from knowledge_recycling.data.sources import SPLIT_NAMES
from knowledge_recycling.errors import DataError

Array = npt.NDArray[Any]

_UNREADABLE = (
    OSError,
    KeyError,
    EOFError,
    ValueError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


NPZ = "an undamaged .npz archive of plain arrays; pickled objects are never loaded"


@contextmanager
def reading(where: object, expected: str = NPZ) -> Iterator[None]:
    """Turns what reading a missing, damaged or unsafe file of arrays raises into a `DataError`."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(
            "the file of images does not exist",
            where=where,
            expected=expected,
            got="nothing",
            next_step="correct the path; a relative one starts at the current folder",
        ) from None
    except _UNREADABLE as error:
        raise DataError(
            "the file of images cannot be read",
            where=where,
            expected=expected,
            got=error,
            next_step="copy or download it again",
        ) from None


def is_there(path: Path, what: str, expected: str, *, download: bool) -> bool:
    """Returns whether `path` exists; if not, and nothing may be fetched, that is an error.

    Raises:
        DataError: `what` the path is of is not there, and `download` is false.
    """
    there = path.exists()
    if not there and not download:
        raise DataError(
            f"{what} is not there",
            where=path,
            expected=expected,
            got="nothing",
            next_step="set `download = true` in the recipe, or correct `root`",
        )
    return there


def splits_from_arrays(
    arrays: Mapping[str, Array], where: object, class_names: Sequence[str] | None = None
) -> FoundSplits:
    """Returns the splits in `arrays`, their classes the sorted labels of all splits together.

    Args:
        arrays: Per split `{split}_images`, uint8 or floats in [0, 1], [N,H,W], [N,H,W,1] or
            [N,H,W,3]; `{split}_labels`, integers >= 0, [N] or [N,1]; optional `{split}_groups`,
            integers or strings, [N].
        where: Named in errors.
        class_names: One name per class in order of the labels, or a longer list that each label
            is an index into; by default the label itself.

    Raises:
        DataError: An array is missing or breaks a rule above.
    """
    present = [name for name in SPLIT_NAMES if f"{name}_images" in arrays or name == "train"]
    images, labels = {}, {}
    for name in present:
        images[name] = _images(_array(arrays, f"{name}_images", where), f"{where}: {name}_images")
        labels[name] = _labels(_array(arrays, f"{name}_labels", where), f"{where}: {name}_labels")
        _check_length(len(labels[name]), len(images[name]), f"{where}: {name}_labels")
    values = np.unique(np.concatenate(list(labels.values())))
    names = _class_names(values, class_names, where)
    groups = _group_codes(arrays, {name: len(images[name]) for name in present}, where)
    return {
        name: ImageSet(images[name], np.searchsorted(values, labels[name]), names, groups.get(name))
        for name in present
    }


def _array(arrays: Mapping[str, Array], key: str, where: object) -> Array:
    if key not in arrays:
        raise DataError(
            f"the array '{key}' is missing",
            where=where,
            expected="train_images and train_labels, and both arrays of any other split",
            got=", ".join(arrays) or "no array at all",
            next_step="add it, or rename the array that is meant",
        )
    with reading(f"{where}: {key}"):
        return np.asarray(arrays[key])  # an entry that is no array comes as bytes


def _images(images: Array, where: str) -> npt.NDArray[np.uint8]:
    known_layout = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if not known_layout or images.size == 0:
        raise DataError(
            "the images have a wrong shape",
            where=where,
            expected="[N,H,W], [N,H,W,1] or [N,H,W,3], at least one image",
            got=list(images.shape),
            next_step="move the channels last with numpy.moveaxis; volumes are not supported",
        )
    scaled: Array = _bytes_from_unit(images, where) if images.dtype.kind == "f" else images
    if scaled.dtype != np.uint8:
        raise DataError(
            "the pixels have a wrong type",
            where=where,
            expected="uint8, or floats in [0, 1]",
            got=images.dtype,
            next_step="scale them to 0..255 and save them with .astype(numpy.uint8)",
        )
    channels_last = scaled if scaled.ndim == 4 else scaled[..., None]
    channels_first: npt.NDArray[np.uint8] = np.moveaxis(channels_last, 3, 1)  # a view, no copy
    return channels_first


def _bytes_from_unit(images: Array, where: str) -> npt.NDArray[np.uint8]:
    low, high = images.min(), images.max()
    if not (low >= 0.0 and high <= 1.0):  # so written that NaN is refused too
        raise DataError(
            "the pixels are out of range",
            where=where,
            expected="floats in [0, 1], without NaN",
            got=f"{low} to {high}" if np.isfinite([low, high]).all() else _not_finite(images),
            next_step="divide by the largest possible value, or save uint8; replace NaN",
        )
    as_bytes: npt.NDArray[np.uint8] = np.rint(images * 255).astype(np.uint8)
    return as_bytes


def _not_finite(images: Array) -> str:
    bad = ~np.isfinite(images).reshape(len(images), -1).all(axis=1)
    return f"NaN or infinity in {bad.sum()} images, the first at index {bad.argmax()}"


def _labels(labels: Array, where: str) -> npt.NDArray[np.int64]:
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            "the set has several labels per image",
            where=where,
            expected="one class per image: [N] or [N,1]",
            got=list(labels.shape),
            next_step="keep one label, e.g. labels[:, 0]; or numpy.argmax(labels, 1) if one-hot",
        )
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise DataError(
            "the labels are not class numbers",
            where=where,
            expected="integers >= 0, [N] or [N,1]",
            got=f"{labels.dtype}, {list(labels.shape)}, first {labels.ravel()[:3].tolist()}",
            next_step="number the classes from 0 and save them with .astype(numpy.int64)",
        )
    return labels.reshape(-1).astype(np.int64)


def _check_length(got: int, num_images: int, where: str) -> None:
    if got != num_images:
        raise DataError(
            "the number of entries is not the number of images",
            where=where,
            expected=num_images,
            got=got,
            next_step="save both arrays from the same selection",
        )


def _class_names(
    values: npt.NDArray[np.int64], given: Sequence[str] | None, where: object
) -> tuple[str, ...]:
    if given is None:
        return tuple(str(value) for value in values)
    if len(given) == len(values):
        return tuple(given)
    if len(given) <= values.max():
        raise DataError(
            "the class names do not match the labels",
            where=where,
            expected=f"{len(values)} names, or more than the largest label, {values.max()}",
            got=f"{len(given)} names",
            next_step="give one name per class, in order of the labels",
        )
    return tuple(given[value] for value in values)


def _group_codes(
    arrays: Mapping[str, Array], lengths: Mapping[str, int], where: object
) -> dict[str, npt.NDArray[np.int64]]:
    groups = {
        name: _array(arrays, f"{name}_groups", where).reshape(-1)
        for name in lengths
        if f"{name}_groups" in arrays
    }
    for name, values in groups.items():
        _check_length(len(values), lengths[name], f"{where}: {name}_groups")
    if not groups:
        return {}
    known = np.unique(np.concatenate(list(groups.values())))
    return {name: np.searchsorted(known, values) for name, values in groups.items()}
