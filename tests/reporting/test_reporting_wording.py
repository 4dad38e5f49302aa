"""Verdict and numbers in words: every branch says what the numbers say, and never more."""

from __future__ import annotations

from typing import Any

import pytest

from knowledge_recycling.reporting.reading import parse_result
from knowledge_recycling.reporting.result import Measure
from knowledge_recycling.reporting.wording import (
    duration,
    fidelity_sentence,
    number,
    percent,
    percent_interval,
    plain,
    signed,
    signed_interval,
    verdict,
)

Values = dict[str, Any]


def with_gap(result: Values, gap: float, interval: list[float] | None) -> Values:
    result["gap"] |= {"accuracy_pp": gap, "accuracy_ci95": interval}
    return result


@pytest.mark.parametrize(
    ("gap", "interval", "said"),
    [
        (-1.2, [-2.9, 0.4], "(95\u00a0% interval \u22122.9 to +0.4), which includes zero"),
        (-3.0, [-4.1, -0.2], "the Student is worse beyond chance"),
        (2.0, [0.3, 3.9], "the Student is better beyond chance"),
        (2.0, None, "without an interval, so it may be chance"),
    ],
)
def test_the_gap_in_plain_words(
    result: Values, gap: float, interval: list[float] | None, said: str
) -> None:
    sentence = verdict(parse_result(with_gap(result, gap, interval))).utility
    assert f"a gap of {signed(gap)} percentage points" in sentence
    assert said in sentence


def test_utility_names_both_accuracies_and_the_number_of_images(result: Values) -> None:
    sentence = verdict(parse_result(result)).utility
    for role in ("teacher", "student"):
        assert f"{100 * result[role]['test']['accuracy']['value']:.1f}\u00a0%" in sentence
    assert "On 360 real test images" in sentence


@pytest.mark.parametrize("several", [False, True])
def test_how_the_student_follows_those_who_labelled(result: Values, several: bool) -> None:
    if several:
        result["ensemble"] = result["teacher"]
    said = fidelity_sentence(parse_result(result)).replace("\u00a0", " ")
    who = "teachers do together" if several else "Teacher does"
    assert said == (
        f"The Student answers as its {who} on 95.0 % of the test images (divergence 0.021 nats) "
        "and 96.1 % of the validation images (divergence 0.019 nats)."
    )
    assert fidelity_sentence(parse_result(result | {"fidelity": {}})) == ""


def test_without_an_audit_leakage_is_not_audited(result: Values) -> None:
    assert "not audited" in verdict(parse_result(result)).leakage


def test_with_an_audit_the_strongest_attack_on_the_student_bounds_from_below(
    result: Values,
) -> None:
    result["privacy"] = {
        "overfitted classifier": {"lira": {"auc": 0.99}},
        "student": {
            "loss": {"auc": 0.52},
            "rmia": {"auc": 0.571, "tpr_at_fpr": {"0.01": 0.03}, "ci95": {"auc": [0.55, 0.59]}},
        },
    }
    sentence = verdict(parse_result(result)).leakage
    assert "leaks at least" in sentence
    assert "strongest of 2 attacks, rmia" in sentence
    assert "AUC of 0.571 (95\u00a0% interval 0.550 to 0.590)" in sentence


def test_an_audit_of_others_is_no_audit_of_the_student(result: Values) -> None:
    result["privacy"] = {"teacher": {"loss": {"auc": 0.6}}}
    sentence = verdict(parse_result(result)).leakage
    assert "The Student was not audited, only its Teacher" in sentence
    assert "AUC of 0.600" in sentence


def test_a_generator_that_an_audit_left_out_is_named_as_not_tested(result: Values) -> None:
    assert "Generator" not in verdict(parse_result(result)).not_tested
    result["privacy"] = {"student": {"loss": {"auc": 0.6}}}
    assert "attacks on the Generator" in verdict(parse_result(result)).not_tested
    result["privacy"]["generator"] = {"loss": {"auc": 0.6}}
    assert "Generator" not in verdict(parse_result(result)).not_tested


def test_three_sentences_that_never_promise_safety(result: Values) -> None:
    said = verdict(parse_result(result))
    for sentence in (said.utility, said.leakage, said.not_tested):
        assert sentence.endswith(".")
        assert ". " not in sentence
        assert not {"immune", "safe", "private", "anonymous"} & set(sentence.lower().split())
    assert "seed 0" in said.not_tested


def test_nothing_measured_is_a_dash() -> None:
    nothing = Measure()
    shown = [show(nothing) for show in (percent, signed, number)] + [duration(None)]
    assert shown == ["\u2013"] * 4
    assert percent_interval(nothing) == signed_interval(nothing) == ""


def test_numbers_as_written() -> None:
    assert percent(Measure(value=1.0)) == "100.0"
    assert signed(-0.04) == "+0.0"
    assert signed(-1.26) == "\u22121.3"
    assert percent_interval(Measure(value=0.5, low=0.25, high=0.75)) == "25.0\u201375.0"
    assert signed_interval(Measure(value=0.0, low=-1.0, high=2.0)) == "\u22121.0 to +2.0"
    assert [number(each) for each in (1e-5, 12.3456, 98765)] == ["1e\u221205", "12.35", "98,765"]
    assert [duration(each) for each in (59.6, 3599.9)] == ["1 min 00 s", "1 h 00 min"]
    assert [plain(each) for each in ("a", None, 0.5)] == ["a", "null", "0.5"]
