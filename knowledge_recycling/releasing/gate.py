"""The gate: which limits of the release policy a result passes, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from knowledge_recycling.auditing import SANITY
from knowledge_recycling.privacy.policy import ReleasePolicy
from knowledge_recycling.reporting.result import Attack, Audit, Result

FPR = 0.01
FOUND_AUC = 0.6
"""What attacks must reach on overfitted classifiers at least, or at least the limit they check."""
Attacks = Mapping[str, Attack]


def violations(result: Result, policy: ReleasePolicy, *, with_generator: bool = False) -> list[str]:
    """Returns a sentence for each limit that the result does not keep; none: it may be released.

    Args:
        result: The run; of its audited targets only those count that are released, with their
            canaries. Yardsticks, which stand beside them to compare with, do not.
        policy: The limits.
        with_generator: Whether the generators are released too.
    """
    return [*_leakage(result, policy, with_generator), *_utility(result, policy)]


def _leakage(result: Result, policy: ReleasePolicy, with_generator: bool) -> Iterator[str]:
    audit, generators = result.audit, result.generators if with_generator else ()
    if audit is None:
        if policy.audit != "none":
            yield "there is no audit; make one with: kr audit RUN"
        yield from map(_unattacked, generators)
        return
    if policy.audit == "pipeline" and audit.mode != "pipeline":
        yield f"the audit is of the mode '{audit.mode}', expected 'pipeline'"
    yield from _sanity(result.privacy, policy.max_auc)
    for target in (*learners(audit), *generators):
        if target not in result.privacy:
            yield _unattacked(target)
            continue
        yield from _above(target, result.privacy[target], policy.max_auc, policy.max_tpr)
        yield from _canaries(target, result.privacy, policy)


def _unattacked(target: str) -> str:
    return f"the {target} was not attacked: what it leaks is not known"


def learners(audit: Audit) -> tuple[str, ...]:
    """Returns the targets beside the generators that the limits hold for."""
    if audit.mode == "classifier":  # it attacked nothing else; the student learnt from the teacher
        return ("teacher",)
    return ("student", "synthetic set")


def _sanity(privacy: Mapping[str, Attacks], max_auc: float | None) -> Iterator[str]:
    """Yields a sentence where the attacks cannot find even overfitting, or were not tried on it."""
    rows = [attacks for name, attacks in privacy.items() if name.startswith(SANITY)]
    areas = [attack.auc or 0.0 for attacks in rows for attack in attacks.values()]
    if max(areas, default=0.0) <= min(max_auc or FOUND_AUC, FOUND_AUC):
        found = f"AUC {max(areas):.3f}" if areas else "there is no sanity row"
        yield f"the attacks did not find an overfitted classifier, so they show nothing: {found}"


def _canaries(target: str, privacy: Mapping[str, Attacks], policy: ReleasePolicy) -> Iterator[str]:
    limits = (policy.max_canary_auc, policy.max_canary_tpr)
    planted = [name for name in privacy if name.startswith(f"{target}, ")]
    if limits != (None, None) and not planted:
        yield f"{target}: there were no canaries to hold to their limit"
    for name in planted:
        yield from _above(name, privacy[name], *limits)


def _above(
    target: str, attacks: Attacks, max_auc: float | None, max_tpr: float | None
) -> Iterator[str]:
    areas = {name: attack.auc for name, attack in attacks.items()}
    rates = {name: attack.tpr_at_fpr.get(FPR) for name, attack in attacks.items()}
    yield from _largest_above(target, "AUC", areas, max_auc)
    yield from _largest_above(target, "true positive rate at 1 % false positives", rates, max_tpr)


def _largest_above(
    target: str, measure: str, values: Mapping[str, float | None], limit: float | None
) -> Iterator[str]:
    known = {name: value for name, value in values.items() if value is not None}
    if limit is None:
        return
    if not known:
        yield f"{target}: the {measure} is not resolvable"
        return
    name = max(known, key=lambda each: known[each])
    if known[name] > limit:
        excess = f"{known[name] - limit:.3f} above the limit of {limit}"
        yield f"{target}: {measure} {known[name]:.3f} ({name}), {excess}"


def _utility(result: Result, policy: ReleasePolicy) -> Iterator[str]:
    accuracy, gap = result.student.test.accuracy.value, result.gap.accuracy_pp
    yield from _below("the student's accuracy", accuracy, policy.min_accuracy)
    yield from _below("the gap in percentage points", gap, policy.min_gap_pp)


def _below(measure: str, value: float | None, limit: float | None) -> Iterator[str]:
    if limit is None:
        return
    if value is None:
        yield f"{measure} is not known"
    elif value < limit:
        yield f"{measure} is {value:.3f}, {limit - value:.3f} below the limit of {limit}"
