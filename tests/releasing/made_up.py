"""Results with an audit, made up; and what marks the real images of the tiny run."""

from __future__ import annotations

from typing import Any

import numpy as np

from knowledge_recycling.auditing import SANITY
from knowledge_recycling.reporting.reading import parse_result
from knowledge_recycling.reporting.result import Result

MARKER = np.random.default_rng(7).integers(0, 256, (3, 3), dtype=np.uint8)
"""A patch in the corner of every real image."""
SECRET = "s3cr3t-place"  # noqa: S105
CLASSES = ("<script>a|b</script>", "plain")
CANARIES = ("mislabelled", "atypical", "near-duplicate")
TARGETS = ("teacher", "student", "synthetic set")


def attack(auc: float | None = 0.51, tpr: float | None = 0.012) -> dict[str, Any]:
    return {"auc": auc, "tpr_at_fpr": {"0.1": 0.1, "0.01": tpr, "0.001": None}}


def audited(mode: str = "pipeline", **changes: Any) -> Result:
    """A result that keeps the default policy, but for the changed targets."""
    privacy = {SANITY: {"lira": attack(0.9)}}
    for target in TARGETS if mode == "pipeline" else TARGETS[:1]:
        privacy[target] = {"lira": attack(), "loss": attack(0.5)}
        privacy |= {f"{target}, {kind} canaries": {"lira": attack(0.6)} for kind in CANARIES}
    utility = {"test": {"accuracy": 0.9}}
    values = {
        "schema": "1",
        "dataset": {"kind": "npz", "name": "x", "shape": [1, 8, 8], "classes": [], "counts": {}},
        "profile": "cpu",
        "seed": 0,
        "teacher": utility,
        "student": utility,
        "gap": {"accuracy_pp": -1.5},
        "audit": {"mode": mode, "shadows": 16, "images": 100, "primary_attack": "lira"},
        "privacy": {k: v for k, v in (privacy | changes).items() if v is not None},
    }
    return parse_result(values)
