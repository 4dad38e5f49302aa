"""What an attack may see, and the outputs that several attacks read off logits.

Never among the signals: which images are members of the target. Scores are float64 [N], larger =
more likely a member.

Shapes: N images, K classes, Q queries (query 0 the image itself, the others augmented), S shadows,
M synthetic and R reference images, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from knowledge_recycling.errors import DataError

Floats = npt.NDArray[np.float64]
AnyFloats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SHADOWS = ("shadow_logits", "shadow_members")


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What an attack may see of one target; fields that are `None` were not gathered.

    Arrays may be float32 or float64 and are never changed.

    Raises:
        DataError: A field's shape does not match that of the others.
    """

    labels: Labels
    """[N], 0 to K-1."""
    logits: AnyFloats | None = None
    """[Q,N,K] of the target."""
    shadow_logits: AnyFloats | None = None
    """[S,Q,N,K]"""
    shadow_members: Bools | None = None
    """[S,N], whether a shadow was trained on an image (IN) or not (OUT)."""
    population: Bools | None = None
    """[N], images known to be no members of the target nor of a shadow; leave them out when an
    attack is measured."""
    losses: AnyFloats | None = None
    """[N] of the target's generator."""
    shadow_losses: AnyFloats | None = None
    """[S,N] of the shadows' generators."""
    features: AnyFloats | None = None
    """[N,D]"""
    synthetic_features: AnyFloats | None = None
    """[M,D] of the target's synthetic set."""
    reference_features: AnyFloats | None = None
    """[R,D] of real images of the same law: neither members nor among the N."""

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for name, axes in _AXES.items():
            values = getattr(self, name)
            if values is None:
                continue
            fits = values.ndim == len(axes) and all(
                sizes.setdefault(axis, size) == size
                for axis, size in zip(axes, values.shape, strict=True)
            )
            if not fits:
                known = ", ".join(f"{axis} = {size}" for axis, size in sizes.items())
                raise DataError(
                    f"the signal '{name}' does not fit the others",
                    where=name,
                    expected=f"shape [{','.join(axes)}] with {known}",
                    got=list(values.shape),
                )

    def get(self, name: str) -> npt.NDArray[np.generic]:
        """Returns the field `name`.

        Raises:
            DataError: It was not gathered.
        """
        values: npt.NDArray[np.generic] | None = getattr(self, name)
        if values is None:
            raise DataError(
                f"this attack needs the signal '{name}', which was not gathered",
                where=name,
                expected=f"an array [{','.join(_AXES[name])}]",
                got="None",
                next_step="gather it, or leave this attack out",
            )
        return values

    def floats(self, name: str) -> Floats:
        """Returns the field `name` in float64; raises as `get` does."""
        values: Floats = np.asarray(self.get(name), dtype=np.float64)
        return values

    def mask(self, name: str) -> Bools:
        """Returns the boolean field `name`; raises as `get` does."""
        return np.asarray(self.get(name), dtype=np.bool_)

    def judged(self) -> Bools:
        """Returns the images [N] that may be members: all that are not of the population."""
        if self.population is None:
            return np.ones(len(self.labels), dtype=np.bool_)
        return np.logical_not(self.mask("population"))


_AXES = {
    "labels": "N",
    "logits": "QNK",
    "shadow_logits": "SQNK",
    "shadow_members": "SN",
    "population": "N",
    "losses": "N",
    "shadow_losses": "SN",
    "features": "ND",
    "synthetic_features": "MD",
    "reference_features": "RD",
}


def scaled_logits(logits: AnyFloats) -> Floats:
    """Returns log(p / (1 - p)) of each class's probability, same shape [...,K], K >= 2.

    Carlini 2022 (arXiv 2112.03570, section VI-A). From the logits themselves: 1 - p of a sure
    prediction would round to 0.

    >>> scaled_logits(np.array([50.0, 0.0])).tolist()
    [50.0, -50.0]
    """
    logits = np.asarray(logits, dtype=np.float64)
    largest = np.arange(logits.shape[-1]) == logits.argmax(axis=-1)[..., None]
    total = special.logsumexp(logits, axis=-1, keepdims=True)
    # 1 - p is exact enough where p <= 1/2; the largest class, which may be above, is left out
    others = np.where(largest, 0.0, np.exp(logits - total))
    rest_of_largest = special.logsumexp(np.where(largest, -np.inf, logits), axis=-1, keepdims=True)
    scaled = np.where(largest, logits - rest_of_largest, logits - total - np.log1p(-others))
    return np.asarray(scaled)


def of_label(values: Floats, labels: Labels) -> Floats:
    """Returns the values [...,N] that [...,N,K] has for the labels [N]."""
    index = np.broadcast_to(labels[:, None], (*values.shape[:-1], 1))
    return np.asarray(np.take_along_axis(values, index, axis=-1)[..., 0])


def target_confidence(signals: Signals) -> Floats:
    """Returns the target's scaled logits of the labels, [Q,N]."""
    return of_label(scaled_logits(signals.floats("logits")), signals.labels)


def shadow_confidence(signals: Signals) -> Floats:
    """Returns the shadows' scaled logits of the labels, [S,Q,N]."""
    shadows = signals.get("shadow_logits")
    return np.stack([of_label(scaled_logits(one), signals.labels) for one in shadows])


def log_probability(scaled: Floats) -> Floats:
    """Returns log p of scaled logits, exact however sure they are."""
    return np.asarray(-np.logaddexp(0.0, -scaled))
