"""A folder of image files, one folder per class.

Either `root/cat/*.png`, all of it `train`, or `root/train/cat/*.png` beside `val` (or `valid`,
`validation`) and `test`. Class folders may have folders inside; hidden entries and other files are
passed over. PNG, JPEG, TIFF and BMP. How an image is brought to its uint8 square:

* turned upright as its EXIF orientation says;
* transparent pixels laid over black; palette, CMYK and other colour spaces converted to RGB;
* 16-bit grey: the largest value of all 16-bit images of the set, rounded up to 2^b - 1 with b of at
  least 8, becomes 255, so that 12-bit images in 16-bit files keep their contrast and images their
  brightness relative to each other; of 16-bit colour the upper 8 bits are kept;
* several pages or frames, floats and 32-bit values count as unreadable;
* the shorter side scaled to `image_size` (bicubic, antialiased), the centre square cut out;
* grey where no image has colour, else RGB, unless `channels` says otherwise.
"""

from __future__ import annotations

from typing import Literal

from knowledge_recycling.data.images import FoundSplits
from knowledge_recycling.data.sources import LocalPath
from knowledge_recycling.data.sources._listing import list_images
from knowledge_recycling.data.sources._squares import SquaresConfig, decoded_splits


class Config(SquaresConfig):
    """A folder of image files."""

    kind: Literal["folder"] = "folder"
    path: LocalPath
    """The folder that holds the class folders, or the folders `train`, `val` and `test`."""


def load(config: Config) -> FoundSplits:
    """Returns the splits of the folder, images in the order of their names.

    Raises:
        DataError: The folder is missing or has no images in class folders, a link leads out of
            it, or an image cannot be read (damaged, or above Pillow's limit of pixels).
    """
    return decoded_splits(list_images(config.path), config, config.path)
