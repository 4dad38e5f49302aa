"""Tuning against a made-up score of the knobs: what is visited, in which order, and replayed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import optuna
import pytest

from knowledge_recycling.config import Facts
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.models.knobs import Knob, Knobs
from knowledge_recycling.randomness import named_seed
from knowledge_recycling.recipe import Recipe, apply_override
from knowledge_recycling.recycling.scoring import Score
from knowledge_recycling.recycling.tuning import ROUND, TuningConfig, chosen_space, tune

SPACE = {"a": Knob(1.0, (0.5, 1.0, 2.0)), "b": Knob(0.0, (0.0, 0.3))}
DEFAULTS = {"a": 1.0, "b": 0.0}


def cas(knobs: Knobs) -> float:
    return 0.9 - 0.1 * abs(knobs["a"] - 2.0) - 0.2 * abs(knobs["b"] - 0.3)


class Trials:
    """Scores knobs and remembers what it was asked, in all and by round."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self.asked: list[tuple[int, dict[str, float]]] = []

    def __call__(self, by_number: Mapping[int, Knobs]) -> dict[int, Score]:
        self.rounds.append(list(by_number))
        self.asked += [(number, dict(knobs)) for number, knobs in by_number.items()]
        return {
            number: Score(cas=cas(knobs), robust_cas=cas(knobs), loss=1.0, auroc=0.5)
            for number, knobs in by_number.items()
        }


def always(**score: Any) -> Callable[[Mapping[int, Knobs]], dict[int, Score]]:
    return lambda by_number: {number: Score(**score) for number in by_number}


def combinations() -> list[dict[str, float]]:
    return [
        dict(zip(SPACE, values, strict=True))
        for values in itertools.product(*(knob.choices for knob in SPACE.values()))
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("trials", [6, 7, 50])
def test_the_grid_visits_every_combination_once(seed: int, trials: int) -> None:
    asked = Trials()
    found = tune(TuningConfig(trials=trials, sampler="grid"), SPACE, asked, seed)
    key = lambda knobs: sorted(knobs.items())  # noqa: E731
    assert sorted((t.knobs for t in found), key=key) == sorted(combinations(), key=key)
    assert [knobs for _, knobs in asked.asked] == [trial.knobs for trial in found]


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
@pytest.mark.parametrize("trials", [0, 1, 2, 5])
def test_the_defaults_come_first_and_no_setting_twice(sampler: str, trials: int) -> None:
    asked = Trials()
    config = TuningConfig(trials=trials, sampler=sampler)  # type: ignore[arg-type]
    found = tune(config, SPACE, asked, 0)
    assert found[0].knobs == DEFAULTS
    assert 1 <= len(found) <= max(1, trials)
    assert len({tuple(trial.knobs.items()) for trial in found}) == len(found) == len(asked.asked)
    assert all(trial.score.cas == cas(trial.knobs) for trial in found)
    numbers = [number for number, _ in asked.asked]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_a_replay_asks_for_the_same_trials(sampler: str) -> None:
    config = TuningConfig(trials=6, sampler=sampler)  # type: ignore[arg-type]
    first, second, other = Trials(), Trials(), Trials()
    space = SPACE | {"c": Knob(1.0, (1.0, 2.0, 3.0, 4.0, 5.0))}
    assert tune(config, space, first, 3) == tune(config, space, second, 3)
    tune(config, space, other, 4)
    assert first.asked == second.asked
    if sampler == "tpe":
        assert other.asked != first.asked


def test_tpe_first_turns_each_knob_alone() -> None:
    found = tune(TuningConfig(trials=3), SPACE, Trials(), 0)
    assert [trial.knobs for trial in found] == [
        DEFAULTS,
        {"a": 2.0, "b": 0.0},
        {"a": 1.0, "b": 0.3},
    ]


def test_a_knob_at_its_last_choice_is_turned_down() -> None:
    space = {"a": Knob(2.0, (0.5, 1.0, 2.0)), "only": Knob(1.0, (1.0,))}
    found = tune(TuningConfig(trials=2), space, always(cas=0.5, robust_cas=0.5, loss=1.0), 0)
    assert found[1].knobs == {"a": 1.0, "only": 1.0}


@pytest.mark.parametrize(("trials", "later"), [(3, []), (10, [3, 3]), (8, [3, 1])])
def test_planned_trials_are_one_round_and_later_ones_small_ones(
    trials: int, later: list[int]
) -> None:
    space = SPACE | {"c": Knob(1.0, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0))}
    space = dict(list(space.items())[:2]) if trials == 3 else space
    asked = Trials()
    tune(TuningConfig(trials=trials), space, asked, 0)
    planned = len(space) + 1
    assert asked.rounds[0] == list(range(planned))
    # a setting that comes again in a round is not tried again
    assert all(len(each) <= most for each, most in zip(asked.rounds[1:], later, strict=True))
    for numbers, start in zip(asked.rounds[1:], itertools.count(planned, ROUND), strict=False):
        assert set(numbers) <= set(range(start, start + ROUND))


@pytest.mark.parametrize("seed", range(3))
def test_up_to_one_trial_after_the_planned_ones_rounds_change_nothing(seed: int) -> None:
    """What a search one by one, which knows all scores, tries: the reference is Optuna's loop."""
    sampler = optuna.samplers.TPESampler(
        seed=named_seed(seed, "tuning") % 2**32, n_startup_trials=3
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for planned in (DEFAULTS, DEFAULTS | {"a": 2.0}, DEFAULTS | {"b": 0.3}):
        study.enqueue_trial(planned)

    def objective(trial: optuna.Trial) -> float:
        return cas({name: trial.suggest_categorical(name, SPACE[name].choices) for name in SPACE})

    study.optimize(objective, n_trials=4)
    seen: list[dict[str, float]] = []
    for trial in study.trials:
        seen += [] if trial.params in seen else [trial.params]
    found = tune(TuningConfig(trials=4), SPACE, Trials(), seed)
    assert [trial.knobs for trial in found] == seen


def test_tpe_finds_the_best_of_a_small_space() -> None:
    found = tune(TuningConfig(trials=30), SPACE, Trials(), 0)
    best = max(found, key=lambda trial: trial.score.cas or 0)
    assert best.knobs == {"a": 2.0, "b": 0.3}


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_failures_do_not_end_the_search(sampler: str) -> None:
    config = TuningConfig(trials=4, sampler=sampler)  # type: ignore[arg-type]
    found = tune(config, SPACE, always(failure="broken"), 0)
    assert len(found) >= 2
    assert all(trial.score.failure == "broken" for trial in found)


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_with_no_knob_to_turn_there_is_one_trial(sampler: str) -> None:
    config = TuningConfig(trials=3, sampler=sampler, knobs=())  # type: ignore[arg-type]
    assert [trial.knobs for trial in tune(config, {}, always(cas=0.5, loss=1.0, auroc=0.5), 0)] == [
        {}
    ]


@pytest.mark.parametrize("field", [{"knobs": ("aa",)}, {"knobs": ("a",), "choices": {"aa": (1,)}}])
def test_an_unknown_knob_is_named_with_the_known_ones(field: dict[str, object]) -> None:
    with pytest.raises(RecipeError) as caught:
        chosen_space(TuningConfig(**field), SPACE)  # type: ignore[arg-type]
    assert caught.value.got == "aa"
    assert caught.value.expected == "some of a, b"
    assert caught.value.next_step == "did you mean 'a'?"


def test_own_choices_replace_those_of_the_knob_and_keep_its_default() -> None:
    config = TuningConfig(knobs=("a",), choices={"a": (3.0, 0.25)}, trials=9, sampler="grid")
    space = chosen_space(config, SPACE)
    assert space == {"a": Knob(1.0, (0.25, 1.0, 3.0))}
    found = tune(config, space, always(cas=0.5, robust_cas=0.5, loss=1.0), 0)
    assert found[0].knobs == {"a": 1.0}
    assert {trial.knobs["a"] for trial in found} == {0.25, 1.0, 3.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], ("latent_std", "guidance", "hard_weight", "prior_correction")),
        (["generator.kind=biggan"], ("latent_std", "hard_weight", "prior_correction")),
        (["generator.kind=r3gan"], ("latent_std", "hard_weight", "prior_correction")),
        (
            ["generator.kind=biggan", "further_generators.b.kind=flow"],
            ("latent_std", "guidance", "hard_weight", "prior_correction"),
        ),
        (["generator.kind=biggan", "tuning.knobs=['truncation']"], ("truncation",)),
        (["tuning.knobs=[]"], ()),
    ],
)
def test_the_knobs_follow_from_the_kind_of_generator_unless_given(
    make_facts: Callable[..., Facts], changes: list[str], expected: tuple[str, ...]
) -> None:
    values: dict[str, object] = {"data": {"kind": "digits"}}
    for change in changes:
        apply_override(values, change)
    recipe = Recipe.from_dict(values).completed(make_facts())
    assert recipe.tuning.knobs == expected
    assert recipe.completed(make_facts()) == recipe
