"""What a snapshot of a classifier is worth on the validation split, and which one to keep.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score
from torch import nn

from knowledge_recycling.data.augment import augment
from knowledge_recycling.data.images import ImageSet, to_unit
from knowledge_recycling.randomness import rng
from knowledge_recycling.training.loop import GiveUp, Record, never

USELESS = {
    "val_accuracy": 0.0,
    "val_robust_accuracy": 0.0,
    "val_auroc": 0.0,
    "val_loss": float(np.finfo(np.float32).max),
}
"""Measures of a classifier whose logits are not numbers: worse than all others."""


@torch.inference_mode()
def predict_logits(
    classifier: nn.Module,
    image_set: ImageSet,
    fabric: Fabric,
    batch_size: int = 512,
    *,
    augmentations: Sequence[str] = (),
) -> npt.NDArray[np.float64]:
    """Returns the logits of a set, [N,K] in float64, in eval mode.

    `augmentations` change the images first, always in the same way.
    """
    classifier.eval()
    parts = []
    for start in range(0, len(image_set), batch_size):
        images = to_unit(image_set.images[start : start + batch_size]).to(fabric.device)
        images = augment(images, augmentations, rng(0, "prediction", start))
        with fabric.autocast():
            parts.append(classifier(images).double().cpu())
    return torch.cat(parts).numpy()


def validate(classifier: nn.Module, val: ImageSet, fabric: Fabric) -> Record:
    """Returns the measures of one snapshot.

    `val_accuracy`, `val_robust_accuracy` (of corrupted copies), `val_auroc` (macro, one against
    rest) and `val_loss` (nats).
    """
    logits = predict_logits(classifier, val, fabric)
    corrupted = predict_logits(classifier, val, fabric, augmentations=("corrupt",))
    if not (np.isfinite(logits).all() and np.isfinite(corrupted).all()):
        return dict(USELESS)
    log_probabilities = log_softmax(logits, axis=1)
    return {
        "val_accuracy": float(np.mean(logits.argmax(axis=1) == val.labels)),
        "val_robust_accuracy": float(np.mean(corrupted.argmax(axis=1) == val.labels)),
        "val_auroc": macro_auroc(np.exp(log_probabilities), val.labels),
        "val_loss": float(-np.mean(log_probabilities[np.arange(len(val)), val.labels])),
    }


def macro_auroc(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """Returns the mean one-against-rest AUROC over the classes that `labels` [N] has."""
    present = [k for k in range(probabilities.shape[1]) if 0 < np.sum(labels == k) < len(labels)]
    return float(np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in present]))


def merit(record: Record) -> float:
    """Returns what choices on the validation split maximise.

    The mean of the accuracies on the validation images and on their corrupted copies: images met
    later rarely come from exactly the same source.
    """
    return (record["val_accuracy"] + record["val_robust_accuracy"]) / 2


def standard_error(accuracy: float, num_images: int) -> float:
    """Returns the binomial standard error of an accuracy in [0, 1]."""
    return math.sqrt(accuracy * (1 - accuracy) / num_images)


def kept(records: Sequence[Record], num_val: int) -> int:
    """Returns the position of the snapshot to keep: the latest that is not clearly worse.

    Clearly: by more than a standard error of the best merit before it. On few images the best of
    many snapshots is likelier lucky than good, and later ones are averaged over more of training.
    One that is as good on the images themselves, by accuracy and by loss, is not worse for what it
    loses on their corrupted copies.
    """
    chosen = 0
    for i, record in enumerate(records):
        best = max(records[: i + 1], key=merit)
        close = merit(record) >= merit(best) - standard_error(merit(best), num_val)
        if is_usable(record) and (close or _as_good(record, best)):
            chosen = i
    return chosen


def _as_good(record: Record, other: Record) -> bool:
    """Returns whether a snapshot is no worse than another on the images themselves."""
    accurate = record["val_accuracy"] >= other["val_accuracy"]
    return accurate and record["val_loss"] <= other["val_loss"]


def is_usable(record: Record) -> bool:
    """Returns whether the snapshot gave numbers."""
    return record["val_loss"] < USELESS["val_loss"]


def out_of_patience(patience: int | None, give_up: GiveUp = never) -> GiveUp:
    """Returns whether the best record is `patience` or more snapshots old, or to `give_up`."""

    def reached(records: Sequence[Record]) -> bool:
        if give_up(records):
            return True
        best = max(range(len(records)), key=lambda i: (merit(records[i]), -records[i]["val_loss"]))
        return patience is not None and len(records) - 1 - best >= patience

    return reached
