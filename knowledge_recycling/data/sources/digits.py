"""The 1,797 scanned digits that scikit-learn ships: 8x8 grey, ten classes, no file needed."""

from __future__ import annotations

from typing import Literal

import numpy as np

from knowledge_recycling.data.images import FoundSplits, ImageSet
from knowledge_recycling.data.sources import SourceConfig
from knowledge_recycling.data.sources._groups import with_row_groups


class Config(SourceConfig):
    """Scikit-learn's digits; val and test are made."""

    kind: Literal["digits"] = "digits"


def load(config: Config) -> FoundSplits:
    """Returns all digits as `train`, their 0 to 16 scaled to 0 to 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    train = ImageSet(
        images=np.rint(digits.images[:, None] * (255 / 16)).astype(np.uint8),  # [N, 1, 8, 8]
        labels=digits.target.astype(np.int64),
        class_names=tuple(str(name) for name in digits.target_names),
    )
    return with_row_groups({"train": train}, config.groups)
