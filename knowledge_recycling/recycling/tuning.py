"""Tuning: the knobs with which the chosen candidate teaches best, searched by Optuna."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import optuna
from pydantic import Field, NonNegativeInt

from knowledge_recycling.config import DERIVED, Config, did_you_mean
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.models.knobs import Knob, Knobs
from knowledge_recycling.randomness import named_seed
from knowledge_recycling.recycling.scoring import Score

Space = Mapping[str, Knob]


class TuningConfig(Config):
    """Which knobs are tuned and how long."""

    trials: NonNegativeInt = 6
    """Settings tried at most, the defaults first; 0 or 1 keeps the defaults."""
    sampler: Literal["tpe", "grid"] = "tpe"
    """`tpe` (of Optuna) first turns each knob once, then learns from earlier trials; `grid` visits
    the combinations in order."""
    knobs: tuple[str, ...] = DERIVED
    """Names of the knobs that are turned, the others keep their defaults; unset: of the knobs that
    generators and student have, those that are usually worth it, such as `latent_std`."""
    choices: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Values to try for a knob instead of its own."""
    leakage_limit: float | None = Field(None, ge=0.5, le=1)
    """Largest AUC of the loss attack, members against validation images, on the cheap student of a
    candidate or setting that may be chosen; unset: leakage is not measured while choosing."""


@dataclass(frozen=True)
class Trial:
    """One setting of the tuned knobs and its score."""

    knobs: dict[str, float]
    score: Score


def chosen_space(config: TuningConfig, known: Space) -> Space:
    """Returns the knobs to tune.

    Raises:
        RecipeError: A name is not among the `known` knobs, or has choices and is not tuned.
    """
    for name in (*config.knobs, *config.choices):
        if name not in known:
            raise RecipeError(
                f"there is no knob '{name}'",
                where="tuning.knobs",
                expected=f"some of {', '.join(sorted(known))}",
                got=name,
                next_step=did_you_mean(name, known),
            )
    untuned = sorted(set(config.choices) - set(config.knobs))
    if untuned:
        raise RecipeError(
            f"choices are given for '{untuned[0]}', which is not tuned",
            where="tuning.choices",
            expected=f"some of tuning.knobs: {', '.join(config.knobs)}",
            got=untuned[0],
            next_step="add it to tuning.knobs, or remove its choices",
        )
    return {name: _with_choices(known[name], config.choices.get(name)) for name in config.knobs}


def _with_choices(knob: Knob, choices: tuple[float, ...] | None) -> Knob:
    return Knob(knob.default, tuple(sorted({knob.default, *(choices or knob.choices)})))


def tune(
    config: TuningConfig, space: Space, try_knobs: Callable[[int, Knobs], Score], seed: int
) -> list[Trial]:
    """Returns the trials of a search for the knobs of the highest merit, the defaults first.

    The study lives in memory: trials that are done are told to it again when a run resumes, which
    leads the seeded sampler to the same next trial.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = named_seed(seed, "tuning") % 2**32
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=3)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for planned in _combinations(space) if config.sampler == "grid" else _one_by_one(space):
        study.enqueue_trial(planned)
    trials: list[Trial] = []
    for number in range(max(1, config.trials)):
        asked = study.ask()
        knobs = {
            name: float(asked.suggest_categorical(name, list(knob.choices)))
            for name, knob in space.items()
        }
        repeated = next((trial for trial in trials if trial.knobs == knobs), None)
        score = repeated.score if repeated else try_knobs(number, knobs)
        study.tell(asked, score.merit)
        if repeated is None:
            trials.append(Trial(knobs, score))
    return trials


def _combinations(space: Space) -> list[dict[str, float]]:
    # the defaults first; Optuna's own grid can neither start with them nor be asked step by step
    values = itertools.product(*(knob.choices for knob in space.values()))
    combinations = [dict(zip(space, each, strict=True)) for each in values]
    return [_defaults(space), *(each for each in combinations if each != _defaults(space))]


def _one_by_one(space: Space) -> list[dict[str, float]]:
    # the defaults, then each knob alone turned to its next choice: few trials try them all
    turned = [_defaults(space) | {name: _next_choice(knob)} for name, knob in space.items()]
    return [_defaults(space), *turned]


def _defaults(space: Space) -> dict[str, float]:
    return {name: knob.default for name, knob in space.items()}


def _next_choice(knob: Knob) -> float:
    position = knob.choices.index(knob.default)
    following = position + 1 if position + 1 < len(knob.choices) else position - 1
    return knob.choices[max(following, 0)]
