"""The gate on made-up results: every limit refuses above itself, says by how much, and only then.

A target that is released but was not attacked, or cannot be resolved, counts as above its limit.
"""

from __future__ import annotations

from typing import Any

import pytest
from made_up import CANARIES, attack, audited

from knowledge_recycling.auditing import SANITY
from knowledge_recycling.privacy.policy import ReleasePolicy
from knowledge_recycling.releasing.gate import violations
from knowledge_recycling.reporting.result import Chosen, FurtherGenerator, Result


def refused(result: Result, *, with_generator: bool = False, **limits: Any) -> list[str]:
    return violations(result, ReleasePolicy(**limits), with_generator=with_generator)


def test_a_run_within_its_limits_passes() -> None:
    assert refused(audited()) == []
    assert refused(audited(), min_accuracy=0.9, min_gap_pp=-1.5) == []


@pytest.mark.parametrize(
    ("target", "reached", "limits", "said"),
    [
        ("student", attack(0.64), {}, "student: AUC 0.640 (rmia), 0.040 above the limit of 0.6"),
        ("synthetic set", attack(0.64), {"max_auc": 0.55}, "0.090 above the limit of 0.55"),
        ("student", attack(tpr=0.081), {}, "positives 0.081 (rmia), 0.031 above the limit of 0.05"),
        ("student, atypical canaries", attack(0.85), {}, "0.050 above the limit of 0.8"),
        ("student, atypical canaries", attack(tpr=0.3), {"max_canary_tpr": 0.1}, "0.200 above"),
    ],
)
def test_a_limit_that_is_passed_is_named_with_its_excess(
    target: str, reached: dict[str, Any], limits: dict[str, Any], said: str
) -> None:
    [refusal] = refused(audited(**{target: {"lira": attack(), "rmia": reached}}), **limits)
    assert target in refusal
    assert said in refusal


def test_utility_below_its_limit_is_named_with_what_is_missing() -> None:
    low, gap = refused(audited(), min_accuracy=0.95, min_gap_pp=-1.0)
    assert "0.050 below the limit of 0.95" in low
    assert "0.500 below the limit of -1.0" in gap


@pytest.mark.parametrize(
    ("target", "reached", "said"),
    [
        ("student", None, "the student was not attacked"),
        ("student", {"lira": attack(tpr=None)}, "not resolvable"),
        ("synthetic set", {"lira": attack(auc=None)}, "AUC is not resolvable"),
    ],
)
def test_what_is_not_known_counts_as_above(target: str, reached: Any, said: str) -> None:
    assert said in " ".join(refused(audited(**{target: reached})))


def test_a_limit_on_canaries_needs_canaries() -> None:
    without = audited(**{f"student, {kind} canaries": None for kind in CANARIES})
    assert refused(without) == ["student: there were no canaries to hold to their limit"]
    assert refused(without, max_canary_auc=None) == []


@pytest.mark.parametrize("sanity", [None, {"lira": attack(0.55)}])
def test_attacks_that_find_nothing_in_the_sanity_row_prove_nothing(sanity: Any) -> None:
    [refusal] = refused(audited(**{SANITY: sanity}))
    assert "did not find an overfitted classifier" in refusal
    assert refused(audited(**{SANITY: sanity, f"{SANITY}, atypical": {"lira": attack(0.9)}})) == []


def test_yardsticks_are_no_targets_of_the_policy() -> None:
    loud = {"lira": attack(0.99, 0.9)}
    assert refused(audited(**{"teacher": loud, "dp-sgd 8": loud, "hard labels": loud})) == []


def test_a_released_generator_must_have_been_attacked() -> None:
    [refusal] = refused(audited(), with_generator=True)
    assert "the generator was not attacked" in refusal
    attacked = audited(generator={"loss": attack(0.9)})
    assert refused(attacked, max_canary_auc=None) == []
    [refusal] = refused(attacked, max_canary_auc=None, with_generator=True)
    assert "generator: AUC 0.900 (loss)" in refusal


def test_every_released_generator_must_have_been_attacked() -> None:
    further = {"further_generators": {"second": FurtherGenerator(kind="flow", chosen=Chosen())}}
    attacks = {"generator": {"loss": attack(0.5)}, "generator second": {"loss": attack(0.9)}}
    quiet = audited(generator=attacks["generator"]).model_copy(update=further)
    [refusal] = refused(quiet, max_canary_auc=None, with_generator=True)
    assert "the generator second was not attacked" in refusal
    loud = audited(**attacks).model_copy(update=further)
    [refusal] = refused(loud, max_canary_auc=None, with_generator=True)
    assert "generator second: AUC 0.900 (loss)" in refusal
    assert refused(loud, max_canary_auc=None) == []


def test_an_audit_of_classifiers_alone_holds_the_teacher_to_the_limits() -> None:
    weaker = audited("classifier")
    assert refused(weaker) == ["the audit is of the mode 'classifier', expected 'pipeline'"]
    assert refused(weaker, audit="classifier") == []
    loud = audited("classifier", teacher={"lira": attack(0.7)})
    assert "teacher: AUC 0.700" in " ".join(refused(loud, audit="classifier"))


def test_no_audit_is_refused_unless_none_is_asked_for() -> None:
    never = audited().model_copy(update={"audit": None, "privacy": {}})
    assert refused(never) == ["there is no audit; make one with: kr audit RUN"]
    assert refused(never, audit="none") == []
    assert refused(never, audit="none", with_generator=True) != []
    loud = audited(student={"lira": attack(0.9)})
    assert refused(loud, audit="none") != []
