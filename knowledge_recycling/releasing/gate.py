"""The gate: which limits of the release policy a result passes, and by how much."""

from __future__ import annotations

from collections.abc import Iterator

from knowledge_recycling.privacy.policy import ReleasePolicy
from knowledge_recycling.reporting.result import Attack, Result

RELEASED = ("student", "synthetic set")
"""Targets of the audit that leave the building."""
FPR = 0.01


def violations(result: Result, policy: ReleasePolicy) -> list[str]:
    """Returns a sentence for each limit that the result does not keep; none: it may be released."""
    return [*_audit(result, policy), *_leakage(result, policy), *_utility(result, policy)]


def _audit(result: Result, policy: ReleasePolicy) -> Iterator[str]:
    if policy.audit == "none":
        return
    if result.audit is None:
        yield "there is no audit; make one with: kr audit RUN"
    elif policy.audit == "pipeline" and result.audit.mode != "pipeline":
        yield f"the audit is of the mode '{result.audit.mode}', expected 'pipeline'"


def _leakage(result: Result, policy: ReleasePolicy) -> Iterator[str]:
    for target, attacks in result.privacy.items():
        name, _, canaries = target.partition(", ")
        if name not in RELEASED:
            continue
        limits = (
            (policy.max_canary_auc, policy.max_canary_tpr)
            if canaries
            else (policy.max_auc, policy.max_tpr)
        )
        yield from _above(target, attacks, *limits)


def _above(
    target: str, attacks: dict[str, Attack], max_auc: float | None, max_tpr: float | None
) -> Iterator[str]:
    areas = {name: attack.auc for name, attack in attacks.items() if attack.auc is not None}
    if max_auc is not None and areas:
        name = max(areas, key=lambda each: areas[each])
        if areas[name] > max_auc:
            yield f"{target}: AUC {areas[name]:.3f} ({name}), {_by(areas[name] - max_auc, max_auc)}"
    if max_tpr is None:
        return
    rates = {name: attack.tpr_at_fpr.get(FPR) for name, attack in attacks.items()}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    if not known:
        yield f"{target}: the true positive rate at 1 % false positives is not resolvable"
    elif max(known.values()) > max_tpr:
        name = max(known, key=lambda each: known[each])
        excess = _by(known[name] - max_tpr, max_tpr)
        yield f"{target}: {known[name]:.3f} true positives at 1 % false ones ({name}), {excess}"


def _utility(result: Result, policy: ReleasePolicy) -> Iterator[str]:
    accuracy, gap = result.student.test.accuracy.value, result.gap.accuracy_pp
    if policy.min_accuracy is not None and (accuracy or 0.0) < policy.min_accuracy:
        yield f"the student's accuracy is {accuracy}, the limit is {policy.min_accuracy}"
    if policy.min_gap_pp is not None and (gap is None or gap < policy.min_gap_pp):
        yield f"the gap is {gap} points, the limit is {policy.min_gap_pp}"


def _by(excess: float, limit: float) -> str:
    return f"{excess:.3f} above the limit of {limit}"
