"""The synthetic set of a bundle: drawn, freed of copies of members, written as Parquet and npz.

Everything is done chunk by chunk, so that memory does not grow with the set.
Shapes: M synthetic images, N members, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.metrics.pairwise import euclidean_distances

from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.evaluation.quality import nearest_distances
from knowledge_recycling.extras import require

CHUNK = 1000
COPY_QUANTILE = 0.01
"""A synthetic image nearer to a member than all but this share of members are to one another counts
as a near copy."""
BLOCK_BYTES = 2**25
"""Of the pixels as float64 that are compared at a time."""
MAX_REFERENCE = 2000
"""Members that the threshold is measured on."""

Floats = npt.NDArray[np.float64]
SoftLabels = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Copies:
    """Synthetic images that are too close to members."""

    kept: npt.NDArray[np.int64]
    """Rows of the synthetic set that are not."""
    exact: int
    near: int
    threshold: float
    """Root mean square difference of pixels, in grey values, below which an image is a copy."""


def without_copies(
    synthetic: ImageSet,
    members: ImageSet,
    random: np.random.Generator,
    augmentations: Sequence[str] = (),
) -> Copies:
    """Returns which synthetic images are no copies of members, by the distance of their pixels.

    Members are looked for upright and in every flip and turn among the generator's `augmentations`.
    """
    rows = random.permutation(len(members))[:MAX_REFERENCE]
    threshold = float(np.quantile(_to_nearest_other(members.images, rows), COPY_QUANTILE))
    nearest = np.full(len(synthetic), np.inf)
    for view in turned(members.images, augmentations):
        nearest = np.minimum(nearest, _to_nearest(synthetic.images, view))
    exact, near = nearest == 0, nearest < threshold
    return Copies(
        kept=np.flatnonzero(~(exact | near)),
        exact=int(exact.sum()),
        near=int((near & ~exact).sum()),
        threshold=threshold,
    )


def turned(
    images: npt.NDArray[np.uint8], augmentations: Sequence[str]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the images [N,C,H,W] upright and as flips and turns may have shown them."""
    mirrored = (False, True)
    turns = range(4) if "rot90" in augmentations else (0,)
    for turn in turns:
        for up in mirrored if "vflip" in augmentations else (False,):
            for left in mirrored if "hflip" in augmentations else (False,):
                view = np.rot90(images, turn, axes=(2, 3))
                view = view[:, :, ::-1] if up else view
                yield view[..., ::-1] if left else view


def _to_nearest(images: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> Floats:
    """Returns the distance from each image to the nearest of the others, [M]."""
    return np.concatenate(
        [
            np.min([nearest_distances(block, other) for _, other in _blocks(others)], axis=0)
            for _, block in _blocks(images)
        ]
    )


def _to_nearest_other(images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> Floats:
    """Returns the distance from the images in `rows` to the nearest image in another row."""
    nearest = np.full(len(rows), np.inf)
    for first, block in _blocks(images[rows]):
        own = rows[first : first + len(block)]
        for start, others in _blocks(images):
            distances = euclidean_distances(block, others)
            distances[start + np.arange(len(others)) == own[:, None]] = np.inf
            part = slice(first, first + len(block))
            nearest[part] = np.minimum(nearest[part], distances.min(axis=1))
    return nearest


def _blocks(images: npt.NDArray[np.uint8]) -> Iterator[tuple[int, Floats]]:
    """Yields the images some at a time, each block with the number of its first image.

    They are rows whose Euclidean distance is the root mean square difference of pixels.
    """
    pixels = int(np.prod(images.shape[1:]))
    size = max(1, BLOCK_BYTES // (8 * pixels))
    for start in range(0, len(images), size):
        flat = images[start : start + size].reshape(-1, pixels)
        yield start, flat / np.sqrt(pixels)


def write_parquet(
    synthetic: ImageSet, kept: npt.NDArray[np.int64], soft_labels: SoftLabels, path: Path
) -> None:
    """Writes the rows `kept` as Parquet that `datasets.load_dataset` and pandas read."""
    arrow, parquet = require("pyarrow", "release"), require("pyarrow.parquet", "release")
    schema = _schema(arrow, synthetic.class_names)
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(kept), CHUNK):
            rows = kept[start : start + CHUNK]
            images, labels = synthetic.images[rows], synthetic.labels[rows]
            columns = {
                "image": [{"bytes": _png(image), "path": None} for image in images],
                "label": labels.tolist(),
                "soft_labels": soft_labels(images).astype(np.float32).tolist(),
                "class_name": [synthetic.class_names[k] for k in labels],
            }
            writer.write_table(arrow.table(columns, schema=schema))


def _schema(arrow: Any, class_names: tuple[str, ...]) -> Any:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
        "soft_labels": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"},
        "class_name": {"dtype": "string", "_type": "Value"},
    }
    fields = [
        ("image", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])),
        ("label", arrow.int64()),
        ("soft_labels", arrow.list_(arrow.float32())),
        ("class_name", arrow.string()),
    ]
    described = json.dumps({"info": {"features": features}})
    return arrow.schema(fields, metadata={"huggingface": described})


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_npz(synthetic: ImageSet, kept: npt.NDArray[np.int64], path: Path) -> None:
    """Writes the rows `kept` as `train_images` and `train_labels` in MedMNIST's form."""
    channels, height, width = synthetic.shape
    shape = (len(kept), height, width) + ((channels,) if channels > 1 else ())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("train_images.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(kept), CHUNK):
                images = synthetic.images[kept[start : start + CHUNK]]
                last = images[:, 0] if channels == 1 else np.moveaxis(images, 1, 3)
                file.write(np.ascontiguousarray(last).tobytes())
        with archive.open("train_labels.npy", "w") as file:
            np.lib.format.write_array(file, synthetic.labels[kept][:, None], allow_pickle=False)
