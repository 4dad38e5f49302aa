"""Tuning: the knobs with which the chosen candidate teaches best, searched by Optuna."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
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
TryKnobs = Callable[[Mapping[int, Knobs]], Mapping[int, Score]]
"""Settings of a round to their scores, both by the number of the trial."""

ROUND = 3
"""Trials asked for at once when earlier ones guide them; a constant, or the number of workers would
change what is found."""


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


def tune(config: TuningConfig, space: Space, try_knobs: TryKnobs, seed: int) -> list[Trial]:
    """Returns the trials of a search for the knobs of the highest merit, the defaults first.

    What is tried does not depend on who tries it: those planned beforehand make the first round,
    the later ones rounds of `ROUND`, and scores are told in the order in which they were asked for.
    The study lives in memory: trials that are done are told to it again when a run resumes, which
    leads the seeded sampler to the same next trials.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = named_seed(seed, "tuning") % 2**32
    # constant_liar: within a round, settings whose scores are not known yet count as bad ones
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=3, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    planned = _combinations(space) if config.sampler == "grid" else _one_by_one(space)
    for each in planned:
        study.enqueue_trial(each)
    trials: list[Trial] = []
    for numbers in _rounds(len(planned), max(1, config.trials)):
        asked = {number: study.ask() for number in numbers}
        knobs = {number: _suggested(trial, space) for number, trial in asked.items()}
        new = _unseen(knobs, [trial.knobs for trial in trials])
        scores = try_knobs(new)
        trials += [Trial(new[number], scores[number]) for number in new]
        for number, trial in asked.items():
            same = next(each for each in trials if each.knobs == knobs[number])
            study.tell(trial, same.score.merit)
    return trials


def _unseen(
    knobs: Mapping[int, dict[str, float]], seen: Sequence[Knobs]
) -> dict[int, dict[str, float]]:
    """Returns the settings of a round that are not among `seen`, each once."""
    new: dict[int, dict[str, float]] = {}
    for number, each in knobs.items():
        if each not in seen and each not in new.values():
            new[number] = each
    return new


def _rounds(planned: int, trials: int) -> list[range]:
    first = min(planned, trials)
    later = range(first, trials, ROUND)
    return [range(first), *(range(start, min(start + ROUND, trials)) for start in later)]


def _suggested(trial: optuna.Trial, space: Space) -> dict[str, float]:
    return {
        name: float(trial.suggest_categorical(name, list(knob.choices)))
        for name, knob in space.items()
    }


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
