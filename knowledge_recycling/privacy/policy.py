"""The release policy: what an audit must have found before anything leaves the building."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from knowledge_recycling.config import Config


class ReleasePolicy(Config):
    """Limits that `kr release` holds a run to; an unset limit is not looked at.

    They hold for the strongest attack on the student, on the synthetic set, and on the generator if
    it is released, each of which must have been attacked; yardsticks do not count.
    """

    audit: Literal["pipeline", "classifier", "none"] = "pipeline"
    """The audit that must have been made. `classifier` accepts either; an audit of that mode holds
    the teacher to the limits, since it attacked nothing else. `none` asks for no audit, but the
    limits hold for one that was made."""
    max_auc: float | None = Field(0.6, ge=0.5, le=1)
    """Largest area under the ROC, 0.5 being guessing."""
    max_tpr: float | None = Field(0.05, ge=0, le=1)
    """Largest true positive rate at 1 % false positives; a rate that the audit cannot resolve
    counts as above."""
    max_canary_auc: float | None = Field(0.8, ge=0.5, le=1)
    """Largest area under the ROC on the canaries of any kind; there must have been some."""
    max_canary_tpr: float | None = Field(None, ge=0, le=1)
    """Largest true positive rate at 1 % false positives on the canaries, which takes many
    shadows to resolve."""
    min_accuracy: float | None = Field(None, ge=0, le=1)
    """Smallest accuracy of the student on the test split."""
    min_gap_pp: float | None = None
    """Smallest gap in accuracy between student and teacher, in percentage points."""
