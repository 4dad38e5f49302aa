"""Numbers and findings in plain words, the same wherever a run is told of.

Text is for reading, not parsing: minus signs and dashes are the typographic ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from knowledge_recycling.reporting.result import Measure, Result, strongest

_MINUS = "\u2212"
_EN_DASH = "\u2013"
_NOTHING = _EN_DASH
"""Stands where nothing was measured."""


@dataclass(frozen=True)
class Verdict:
    """The run in three sentences."""

    utility: str
    leakage: str
    not_tested: str


def verdict(result: Result) -> Verdict:
    """Returns what the run showed, in plain words: utility, leakage, what was not tested."""
    sentences = (_utility_sentence(result), _leakage_sentence(result), _open_questions(result))
    return Verdict(*map(_unbroken, sentences))


def _unbroken(sentence: str) -> str:
    """Returns the sentence with no line break before a per cent sign."""
    return sentence.replace(" %", "\u00a0%")


def _utility_sentence(result: Result) -> str:
    teacher, student = result.teacher.test.accuracy, result.student.test.accuracy
    gap = result.gap.measure("accuracy")
    return (
        f"On {result.student.test.n:,} real test images the Student, trained only on synthetic "
        f"ones, classifies {percent(student)} % correctly and the Teacher, trained on real ones, "
        f"{percent(teacher)} %: a gap of {signed(gap)} percentage points"
        f"{_in_words(gap)}."
    )


def fidelity_sentence(result: Result) -> str:
    """Returns how closely the student follows who labelled its images; empty if not measured."""
    who = "teachers do together" if result.ensemble else "Teacher does"
    names = {"test": "test", "val": "validation"}
    parts = [
        f"{percent(each.agreement)} % of the {names[split]} images "
        f"(divergence {_written(each.divergence, '.3f')} nats)"
        for split, each in result.fidelity.items()
    ]
    said = f"The Student answers as its {who} on {' and '.join(parts)}." if parts else ""
    return _unbroken(said)


def _in_words(gap: Measure) -> str:
    if gap.low is None or gap.high is None:
        return ", without an interval, so it may be chance"
    between = f" (95 % interval {signed_interval(gap)})"
    if gap.low > 0:
        return f"{between}; the Student is better beyond chance in the test images"
    if gap.high < 0:
        return f"{between}; the Student is worse beyond chance in the test images"
    return f"{between}, which includes zero: these test images cannot tell the two apart"


def _leakage_sentence(result: Result) -> str:
    student = _strongest_in_words(result, "student")
    if student is not None:
        return f"The Student leaks at least this much: {student}; a stronger attack may find more."
    teacher = _strongest_in_words(result, "teacher")
    if teacher is not None:
        return (
            f"The Student was not audited, only its Teacher, which leaks at least this: {teacher}."
        )
    return (
        "Leakage was not audited: nothing here says how much the Student, the Generator or "
        "the synthetic images give away about the real training images: guard them like those."
    )


def _strongest_in_words(result: Result, target: str) -> str | None:
    attacks = result.privacy.get(target, {})
    name = strongest(attacks)
    if name is None:
        return None
    low, high = attacks[name].ci95.get("auc", (None, None))
    between = "" if None in (low, high) else f" (95 % interval {low:.3f} to {high:.3f})"
    return (
        f"the strongest of {len(attacks)} attacks, {name}, tells members from others with an AUC "
        f"of {attacks[name].auc:.3f}{between}, where 0.5 is guessing"
    )


def _open_questions(result: Result) -> str:
    unattacked = result.privacy and any(name not in result.privacy for name in result.generators)
    return (
        f"Not tested: other seeds (this is one run, with seed {result.seed}), images from any "
        f"other source than this set, {'attacks on the Generator itself, ' if unattacked else ''}"
        f"and whatever is too rare to show among {result.student.test.n:,} test images."
    )


def _value(number: Measure | float | None) -> float | None:
    return number.value if isinstance(number, Measure) else number


def _written(number: Measure | float | None, form: str, scale: float = 1.0) -> str:
    value = _value(number)
    return _NOTHING if value is None else f"{scale * value:{form}}".replace("-", _MINUS)


def percent(fraction: Measure | float | None) -> str:
    """Returns a fraction in percent, without the sign.

    >>> percent(0.97777)
    '97.8'
    """
    return _written(fraction, "z.1f", 100.0)


def signed(points: Measure | float | None) -> str:
    """Returns percentage points with their sign.

    >>> signed(1.26), signed(-0.01)
    ('+1.3', '+0.0')
    """
    return _written(points, "+z.1f")


def number(value: Measure | float | None) -> str:
    """Returns a number with four significant digits.

    >>> number(1234567.0), number(0.123456)
    ('1,234,567', '0.1235')
    """
    return _written(value, ",.0f" if abs(_value(value) or 0.0) >= 1000 else ".4g")


def percent_interval(measure: Measure) -> str:
    """Returns the 95 % interval of a fraction in percent; empty without one."""
    low, high = percent(measure.low), percent(measure.high)
    return "" if measure.low is None else f"{low}{_EN_DASH}{high}"


def signed_interval(measure: Measure) -> str:
    """Returns the 95 % interval of a gap in percentage points; empty without one."""
    low, high = signed(measure.low), signed(measure.high)
    return "" if measure.low is None else f"{low} to {high}"


def duration(seconds: float | None) -> str:
    """Returns a time in at most two units.

    >>> duration(12.34), duration(200), duration(7500)
    ('12.3 s', '3 min 20 s', '2 h 05 min')
    """
    value = _value(seconds)
    if value is None:
        return _NOTHING
    minutes, rest = divmod(round(value), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{value:.1f} s"


def plain(value: Any) -> str:
    """Returns any setting as it would stand in a recipe; text without quotes.

    >>> plain("flow"), plain(True), plain([1, 2])
    ('flow', 'true', '[1, 2]')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str)


FORMATS = {
    each.__name__: each
    for each in (percent, percent_interval, signed, signed_interval, number, duration, plain)
}
"""By the names the template calls them."""
