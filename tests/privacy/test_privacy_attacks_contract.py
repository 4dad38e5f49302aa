"""Every file of privacy/attacks keeps the contract of its folder, under each of its settings."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import numpy as np
import pytest
from simulated import simulate
from sklearn.metrics import roc_auc_score

from knowledge_recycling.config import kind_module, known_kinds
from knowledge_recycling.errors import DataError, KRError
from knowledge_recycling.privacy.signals import Signals

FAMILY = "privacy.attacks"
KINDS = known_kinds(FAMILY)
CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "threshold": {
        "signal": ("loss", "confidence", "entropy", "modified_entropy"),
        "per_class": (False, True),
    },
    "trained": {"min_per_class": (20, 100_000)},
    "lira": {
        "mode": ("online", "offline"),
        "variance": ("fixed", "per_image"),
        "queries": ("independent", "joint"),
    },
    "rmia": {"mode": ("online", "offline"), "gamma": (1.0, 1.5)},
    "generator_loss": {"calibrated": (True, False)},
    "synthetic": {
        "method": ("distance", "knn_density", "kernel_density"),
        "neighbours": (1, 3),
    },
}
WEAK = ("confidence", "entropy", "knn_density", "kernel_density")
"""Settings that do not know the label, or smooth away what is near."""


def settings_of(kind: str) -> list[dict[str, Any]]:
    choices = CHOICES.get(kind, {})
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


attacks = pytest.mark.parametrize(
    ("kind", "given"), [(kind, given) for kind in KINDS for given in settings_of(kind)]
)


def attack(kind: str, signals: Signals, given: dict[str, Any]) -> Any:
    module = kind_module(FAMILY, kind)
    return module.score(signals, module.Config(**given))


def fields(signals: Signals) -> dict[str, Any]:
    return {field.name: getattr(signals, field.name) for field in dataclasses.fields(signals)}


@attacks
def test_scores_are_larger_for_members_float64_and_finite(kind: str, given: dict[str, Any]) -> None:
    case = simulate()
    scores = attack(kind, case.signals, given)
    assert scores.dtype == np.float64
    assert scores.shape == case.members.shape
    assert np.isfinite(scores[case.judged]).all()
    assert not np.isnan(scores).any()
    area = roc_auc_score(case.members[case.judged], scores[case.judged])
    assert area > (0.58 if {*given.values()} & {*WEAK} else 0.7)


@attacks
def test_nothing_is_found_where_nothing_leaks(kind: str, given: dict[str, Any]) -> None:
    case = simulate(gain=0.0, images=800)
    if kind == "synthetic":  # the set of a generator that never saw the images
        strangers = np.random.default_rng(9).normal(size=(100, 3))
        case = dataclasses.replace(
            case, signals=dataclasses.replace(case.signals, synthetic_features=strangers)
        )
    scores = attack(kind, case.signals, given)
    area = roc_auc_score(case.members[case.judged], scores[case.judged])
    assert abs(area - 0.5) < 0.085  # four standard errors


@attacks
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inputs_are_unchanged_whatever_their_type(
    kind: str, given: dict[str, Any], dtype: Any
) -> None:
    signals = simulate(dtype=dtype).signals
    before = {name: values.copy() for name, values in fields(signals).items()}
    for values in fields(signals).values():
        values.flags.writeable = False
    attack(kind, signals, given)
    for name, values in fields(signals).items():
        np.testing.assert_array_equal(values, before[name])


@attacks
def test_float32_and_float64_agree(kind: str, given: dict[str, Any]) -> None:
    single = simulate(dtype=np.float32).signals
    double = Signals(
        **{
            name: values.astype(np.float64) if values.dtype == np.float32 else values
            for name, values in fields(single).items()
        }
    )
    np.testing.assert_allclose(
        attack(kind, single, given), attack(kind, double, given), rtol=1e-9, atol=1e-9
    )


@attacks
def test_each_image_is_scored_alike_wherever_it_stands(kind: str, given: dict[str, Any]) -> None:
    signals = simulate().signals
    order = np.random.default_rng(1).permutation(len(signals.labels))
    axes = {"labels": 0, "logits": 1, "shadow_logits": 2, "shadow_members": 1, "population": 0}
    axes |= {"losses": 0, "shadow_losses": 1, "features": 0}
    moved = {name: getattr(signals, name).take(order, axis) for name, axis in axes.items()}
    expected = attack(kind, signals, given)[order]
    scores = attack(kind, dataclasses.replace(signals, **moved), given)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in kind_module(FAMILY, kind).NEEDS]
)
def test_a_missing_need_is_named(kind: str, name: str) -> None:
    signals = dataclasses.replace(simulate().signals, **{name: None})
    with pytest.raises(KRError, match=f"'{name}'"):
        attack(kind, signals, {})


@pytest.mark.parametrize("kind", KINDS)
def test_its_needs_are_enough_and_the_kind_is_the_file_name(kind: str) -> None:
    module = kind_module(FAMILY, kind)
    assert module.Config().kind == kind
    with pytest.raises(ValueError, match="kind"):
        module.Config(kind="another")
    kept = {"labels", *module.NEEDS}
    if kind == "generator_loss":
        kept |= {"shadow_losses", "shadow_members"}  # of its default, calibrated
    signals = simulate(population=60 if "population" in kept else 0).signals
    known = {name: values for name, values in fields(signals).items() if name in kept}
    assert attack(kind, Signals(**known), {}).shape == signals.labels.shape


@pytest.mark.parametrize(
    ("kind", "given", "lacking"),
    [
        ("lira", {"variance": "per_image"}, "IN"),
        ("lira", {"mode": "offline"}, "OUT"),
        ("rmia", {}, "IN"),
        ("trained", {}, "IN"),
        ("generator_loss", {}, "OUT"),
        ("threshold", {"per_class": True}, "OUT"),
    ],
)
def test_too_few_shadows_are_an_error(kind: str, given: dict[str, Any], lacking: str) -> None:
    signals = simulate(shadows=6).signals
    members = np.full_like(signals.shadow_members, lacking == "OUT")
    with pytest.raises(DataError, match=r"shadow|OUT|tell apart"):
        attack(kind, dataclasses.replace(signals, shadow_members=members), given)


@pytest.mark.parametrize(
    ("name", "cut"),
    [("logits", np.s_[:, 1:]), ("shadow_members", np.s_[1:]), ("features", np.s_[:, 1:])],
)
def test_signals_that_do_not_fit_are_an_error(name: str, cut: Any) -> None:
    signals = simulate().signals
    with pytest.raises(DataError, match="does not fit") as caught:
        dataclasses.replace(signals, **{name: getattr(signals, name)[cut]})
    assert "shape [" in str(caught.value)
