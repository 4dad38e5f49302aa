"""A folder of image files, one folder per class.

Either `root/cat/*.png`, all of it `train`, or `root/train/cat/*.png` beside `val` (or `valid`,
`validation`) and `test`. Class folders may have folders inside; hidden entries and other files are
passed over. PNG, JPEG, TIFF and BMP. How an image is brought to its uint8 square:

* turned upright as its EXIF orientation says;
* transparent pixels laid over black; palette, CMYK and other colour spaces converted to RGB;
* 16-bit grey: the largest value of all 16-bit images of the set, rounded up to 2^b - 1 with b of at
  least 8, becomes 255, so that 12-bit images in 16-bit files keep their contrast and images their
  brightness relative to each other; of 16-bit colour the upper 8 bits are kept;
* several pages, floats and 32-bit values count as unreadable;
* the shorter side scaled to `image_size` (bicubic, antialiased), the centre square cut out;
* grey where no image has colour, else RGB, unless `channels` says otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from knowledge_recycling.data.images import FoundSplits, ImageSet
from knowledge_recycling.data.sources import LocalPath, SourceConfig
from knowledge_recycling.data.sources._decoding import Channels, Decoded, decode, shorter_side
from knowledge_recycling.data.sources._groups import with_groups
from knowledge_recycling.data.sources._listing import ImageFile, list_images
from knowledge_recycling.errors import DataError

SMALLEST_SIDE, LARGEST_SIDE = 8, 64

Result = TypeVar("Result")


class Config(SourceConfig):
    """A folder of image files."""

    kind: Literal["folder"] = "folder"
    path: LocalPath
    """The folder that holds the class folders, or the folders `train`, `val` and `test`."""
    image_size: PositiveInt | None = None
    """Pixels per side after scaling; unset: the median shorter side of the images, rounded to a
    multiple of 4 between 8 and 64."""
    channels: Channels = "auto"
    """`grey`, `rgb`, or `auto`: grey if no image has colour."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, with a warning, instead of stopping."""


def load(config: Config) -> FoundSplits:
    """Returns the splits of the folder, images in the order of their names.

    Raises:
        DataError: The folder is missing or has no images in class folders, a link leads out of
            it, or an image cannot be read (damaged, or above Pillow's limit of pixels).
    """
    files = list_images(config.path)
    images = _readable([file for part in files.values() for file in part], config)
    classes = tuple(sorted({file.class_name for part in files.values() for file in part}))
    form = _common_form(images, config)
    kept = {split: [f for f in part if f.name in images] for split, part in files.items()}
    found = {split: _image_set(part, images, classes, form) for split, part in kept.items()}
    keys = {split: [file.name for file in part] for split, part in kept.items()}
    return with_groups(found, keys, config.groups)


def _readable(files: Sequence[ImageFile], config: Config) -> dict[str, Decoded]:
    """Returns the decoded images by name, without those that are skipped."""
    paths = [file.path for file in files]
    with _decompression_bombs_refused(), ThreadPoolExecutor() as pool:
        side = config.image_size or _typical_side(pool.map(_attempt(shorter_side), paths))
        to_square = partial(decode, side=side, channels=config.channels)
        attempts = list(pool.map(_attempt(to_square), paths))
    results = {file.name: attempt for file, attempt in zip(files, attempts, strict=True)}
    images = {name: got for name, got in results.items() if isinstance(got, Decoded)}
    problems = {name: str(got) for name, got in results.items() if isinstance(got, Exception)}
    if problems:
        _report(problems, config, may_skip=config.skip_unreadable and len(images) > 0)
    return images


def _attempt(work: Callable[[Path], Result]) -> Callable[[Path], Result | Exception]:
    """Returns `work` with errors as values, so that all damaged images are named at once."""

    def attempt(path: Path) -> Result | Exception:
        try:
            return work(path)
        except Exception as error:  # decoders raise a dozen types on damaged files
            return error

    return attempt


@contextmanager
def _decompression_bombs_refused() -> Iterator[None]:
    """Makes Pillow raise at its limit of pixels, where it only warns up to twice that limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _typical_side(sides: Iterable[int | Exception]) -> int:
    known = [side for side in sides if isinstance(side, int)]
    typical = 4 * round(np.median(known or [LARGEST_SIDE]) / 4)
    return min(max(typical, SMALLEST_SIDE), LARGEST_SIDE)


def _report(problems: Mapping[str, str], config: Config, *, may_skip: bool) -> None:
    first = "; ".join(f"{name} ({problem})" for name, problem in list(problems.items())[:5])
    if may_skip:
        warnings.warn(f"unreadable images skipped: {len(problems)}: {first}", stacklevel=2)
        return
    raise DataError(
        f"images that cannot be read: {len(problems)} of the folder",
        where=config.path,
        expected="undamaged PNG, JPEG, TIFF or BMP files of 8 or 16 bit",
        got=first,
        next_step="repair or remove them, or set `skip_unreadable = true` in the recipe",
    )


@dataclass(frozen=True)
class _Form:
    """What all images of the set are brought to."""

    shape: tuple[int, int, int]
    """C, S, S."""
    full_scale: int
    """Value in a 16-bit image that becomes 255."""


def _common_form(images: Mapping[str, Decoded], config: Config) -> _Form:
    sizes = {image.pixels.shape for image in images.values()}
    num_channels = 3 if config.channels == "rgb" else max(size[0] for size in sizes)
    _, height, width = next(iter(sizes))
    peak = max(image.peak for image in images.values())
    return _Form((num_channels, height, width), 2 ** max(8, peak.bit_length()) - 1)


def _image_set(
    files: Sequence[ImageFile], images: Mapping[str, Decoded], classes: tuple[str, ...], form: _Form
) -> ImageSet:
    stacked = np.empty((len(files), *form.shape), np.uint8)
    for position, file in enumerate(files):
        pixels = images[file.name].pixels
        if pixels.dtype == np.uint16:
            pixels = np.rint(np.minimum(pixels / form.full_scale, 1.0) * 255)
        stacked[position] = pixels  # one channel fills three
    labels = [classes.index(file.class_name) for file in files]
    return ImageSet(stacked, np.array(labels, np.int64), classes)
