"""The stage `audit`: shadows of this run, what they say of every image, and the attacks on that.

A shadow is a run like this one on a random half of the members (canaries included); the validation
split, which makes its choices, is the same for all and no member of any. Each shadow is a part of
its own, so that they can be made in any order and an interrupted audit goes on.

Shapes: S shadows, N images of the pool, P of the population, Q queries, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from knowledge_recycling.artefacts import Run
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.data.inspection import fingerprints
from knowledge_recycling.errors import DataError, RunError
from knowledge_recycling.fanout import fan_out, workers_for
from knowledge_recycling.privacy.attacks import generator_loss
from knowledge_recycling.privacy.audit import (
    IMAGES,
    MIN_SHADOWS,
    PRIMARY,
    AuditConfig,
    Battery,
    Shadows,
    as_result,
    attack_shadows,
    by_class,
    by_group,
    canary_epsilon,
    overfitted,
    vulnerability,
    with_population,
)
from knowledge_recycling.privacy.canaries import KINDS, Planted, plant
from knowledge_recycling.privacy.dp import check_installed
from knowledge_recycling.privacy.epsilon import CONFIDENCE
from knowledge_recycling.privacy.many import MIN_PER_SIDE, half_memberships
from knowledge_recycling.privacy.metrics import Aggregate, Trials
from knowledge_recycling.privacy.signals import Bools, Floats, Labels, Signals
from knowledge_recycling.privacy.yardsticks import About, random_guess, yardstick
from knowledge_recycling.randomness import numpy_rng
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.rundir import check_done
from knowledge_recycling.shadows import ABOUT, LOSSES, SIGNALS, Order, fulfil
from knowledge_recycling.storage import read_arrays, read_json, write_arrays, write_json

MOST_VULNERABLE = 20
SANITY = "overfitted classifier (sanity)"
MIN_HOLDOUT = 20

GENERATOR_ATTACKS = {
    "loss": generator_loss.Config(calibrated=False),
    "calibrated_loss": generator_loss.Config(),
}

Answers = dict[str, npt.NDArray[Any]]
"""What one shadow left, by name: logits [Q,N+P,K] of targets, scores [N] of attacks on its set."""


def audit(run: Run, folder: Path) -> None:
    """Trains the shadows, attacks them, and writes `audit.json` and the raw scores.

    Raises:
        DataError: The validation split cannot be the holdout.
        RunError: Too few shadows could be made, or some are of other settings.
    """
    check_holdout(run.members, run.val, keep=run.recipe.audit.overlap == "leave_out")
    planted, members = pool_of(run)
    failures = make_shadows(run, folder, planted, members)
    left = len(members) - len(failures)
    if left < MIN_SHADOWS // 2:
        raise RunError(
            "too few shadows are left to attack",
            where=folder,
            expected=f"at least {MIN_SHADOWS // 2}",
            got=f"{left}; {next(iter(failures.values()))}",
            next_step="mend the cause, then start again with: kr run RECIPE --redo audit",
        )
    write_audit(run, folder, planted, members, failures)


def check_supported(recipe: Recipe) -> None:
    """Finds before any training what an audit that the recipe asks for cannot do.

    Raises:
        RecipeError: Opacus is missing.
    """
    if recipe.audit.shadows:
        check_installed(recipe.audit.yardsticks.dp)


def check_holdout(members: ImageSet, holdout: ImageSet, *, keep: bool) -> Bools:
    """Returns which images [P] of the holdout are no copies of members.

    Args:
        members: The real training images.
        holdout: The validation split: known to be no members of any shadow.
        keep: Accept copies, to leave them out.

    Raises:
        DataError: The holdout is too small, or has copies and `keep` does not accept them.
    """
    copied = np.isin(fingerprints(holdout), fingerprints(members))
    apart, copies = ~copied, int(copied.sum())
    if copies and not keep:
        raise DataError(
            f"{copies} validation images are also training images",
            where="audit: the holdout",
            expected="images that are no members",
            got=f"{copies} of {len(holdout)} identical to a member",
            next_step='remove them, or leave them out with --set audit.overlap="leave_out"',
        )
    if apart.sum() < MIN_HOLDOUT:
        raise DataError(
            "the validation split is too small to be the holdout of an audit",
            where="audit: the holdout",
            expected=f"at least {MIN_HOLDOUT} images that are no members",
            got=int(apart.sum()),
            next_step="give more validation images",
        )
    return apart


def pool_of(run: Run) -> tuple[Planted, Bools]:
    """Returns the members with canaries planted among them, and who is IN which shadow, [S,N]."""
    config, seed = run.recipe.audit, run.context.seed
    planted = plant(run.members, config.canaries or 0, numpy_rng(seed, "audit", "canaries"))
    random = numpy_rng(seed, "audit", "members")
    return planted, half_memberships(config.shadows, len(planted.kinds), random)


def make_shadows(run: Run, folder: Path, planted: Planted, members: Bools) -> dict[int, str]:
    """Makes all shadows that are not done, several at a time; returns why which of them failed."""
    reporter, count = run.context.reporter, len(members)
    workers = workers_for(run.recipe.compute, count, run.context.fabric.device)
    seen = run.for_workers(workers)
    orders = [
        Order(
            run=seen,
            pool=planted.pool,
            members=members[number],
            number=number,
            folder=shadow_folder(folder, number),
        )
        for number in range(count)
    ]
    reporter.stage(f"{count} shadows, {workers.count} at a time")
    failures = {}
    for done, each in enumerate(fan_out(fulfil, orders, workers, folder), start=1):
        outcome = each.outcome
        told = f": {outcome.failure}" if outcome.failure else ""
        reporter.stage(f"shadow {outcome.number} is done, {done} of {count}{told}")
        if outcome.failure is not None:
            failures[outcome.number] = outcome.failure
    return failures


def shadow_folder(folder: Path, number: int) -> Path:
    """Returns the part of a shadow."""
    return folder / f"shadow-{number:03d}"


@dataclass(frozen=True)
class Answered:
    """The shadows that were made and what they say."""

    members: Bools
    """[S,N]"""
    answers: tuple[Answers, ...]
    """[S]"""
    about: Mapping[str, About]
    """Of each target; numbers are means over the shadows."""


def read_shadows(folder: Path, members: Bools, failures: Mapping[int, str]) -> Answered:
    """Returns what the shadows that did not fail have left.

    Raises:
        RunError: A part is damaged.
    """
    done = [number for number in range(len(members)) if number not in failures]
    parts = [shadow_folder(folder, number) for number in done]
    for part in parts:
        check_done(part)
    known = [read_json(part / ABOUT) for part in parts]
    about = {name: _mean_about([each[name] for each in known]) for name in known[0]}
    return Answered(members[done], tuple(read_arrays(part / SIGNALS) for part in parts), about)


def _mean_about(each: list[dict[str, float | None]]) -> About:
    return About(
        **{
            name: None if value is None else float(np.mean([one[name] for one in each]))
            for name, value in each[0].items()
        }
    )


def write_audit(
    run: Run, folder: Path, planted: Planted, members: Bools, failures: dict[int, str]
) -> None:
    """Writes `audit.json`: what every attack found, how, and what was held fixed."""
    seen = read_shadows(folder, members, failures)
    judged = enough_shadows(seen.members)
    targets, accuracy = targets_of(run, planted, seen)
    batteries = {name: attack_shadows(shadows) for name, shadows in targets.items()}
    privacy = {
        _target(target, group): as_result(found)
        for target, battery in batteries.items()
        for group, found in battery.found.items()
    }
    kinds = np.where(judged, planted.kinds, -1)
    privacy |= synthetic_privacy(seen.answers, seen.members, kinds)
    privacy |= generator_privacy(seen.answers, seen.members, kinds, planted.pool.labels)
    ranks = vulnerability(targets["student" if "student" in targets else "teacher"])
    most = np.argsort(-ranks)[:MOST_VULNERABLE]
    write_arrays(folder / "members.npz", {"members": seen.members, "kinds": planted.kinds})
    about = description(run.recipe.audit, seen, int(judged.sum()), len(failures))
    vulnerable = np.flatnonzero(judged)[most].tolist()
    write_json(
        folder / "audit.json",
        {
            "privacy": privacy,
            "audit": about
            | {"sanity_training_accuracy": accuracy}
            | conclusions(run, targets, batteries, seen.about),
            "vulnerable": [
                {"image": image, "separation": float(ranks[i])}
                for image, i in zip(vulnerable, most, strict=True)
            ],
        },
    )


def conclusions(
    run: Run,
    targets: Mapping[str, Shadows],
    batteries: Mapping[str, Battery],
    about: Mapping[str, About],
) -> dict[str, Any]:
    """Returns what follows for each target: table of yardsticks, epsilon, classes, ROC."""
    delta, num_classes = run.recipe.audit.yardsticks.dp.delta, run.members.num_classes
    rows: list[dict[str, Any]] = [random_guess(num_classes)]
    epsilons, classes, curves = {}, {}, {}
    for name, shadows in targets.items():
        primary = batteries[name].primary
        outside = shadows.kinds < 0
        found = batteries[name].found[IMAGES][PRIMARY]
        if name in about:
            logits, labels = shadows.logits[:, 0, outside], shadows.labels[outside]
            rows.append(asdict(yardstick(name, logits, labels, found, about[name])))
        kinds = shadows.kinds[~outside]
        epsilons[name] = canary_epsilon(primary, kinds, delta)
        classes[name] = by_class(primary, kinds, shadows.labels[~outside], num_classes)
        curves[name] = {
            part: None if values is None else values.tolist()
            for part, values in vars(found.roc).items()
        }
    return {
        "yardsticks": rows,
        "epsilon_at_least": {name: each for name, each in epsilons.items() if each is not None},
        "epsilon_delta": delta,
        "epsilon_confidence": CONFIDENCE,
        "by_class": classes,
        "roc": curves,
    }


def enough_shadows(members: Bools) -> Bools:
    """Returns which images [N] have two shadows on either side: failed ones may take the last."""
    counts = members.sum(axis=0)
    return np.asarray(np.minimum(counts, len(members) - counts) >= MIN_PER_SIDE)


def targets_of(run: Run, planted: Planted, seen: Answered) -> tuple[dict[str, Shadows], float]:
    """Returns the shadows of each kind of target, and the sanity row's training accuracy.

    Raises:
        DataError: No image is left that enough shadows were, and were not, trained on.
    """
    enough = enough_shadows(seen.members)
    if not enough.any():
        raise DataError(
            "no image is OUT of two shadows and IN two others",
            where="audit",
            got=f"{len(seen.members)} shadows",
            next_step="make more shadows: kr run RECIPE --redo audit --set audit.shadows=16",
        )
    apart = check_holdout(run.members, run.val, keep=True)
    population = run.val.subset(np.flatnonzero(apart))
    kept = np.concatenate([enough, apart])
    targets = {
        name: with_population(
            np.stack([each[name] for each in seen.answers])[:, :, kept],
            seen.members[:, enough],
            planted.pool.labels[enough],
            planted.kinds[enough],
            population.labels,
        )
        for name in seen.about
    }
    memorised, accuracy = overfitted(
        planted.pool, planted.kinds, population, len(seen.members), run.context.seed
    )
    return {SANITY: memorised} | targets, accuracy


def _target(name: str, group: str) -> str:
    return name if group == IMAGES else f"{name}, {group.replace('_', '-')} canaries"


def synthetic_privacy(
    answers: tuple[Answers, ...], members: Bools, kinds: Labels
) -> dict[str, Any]:
    """Returns what the attacks on the synthetic sets found, by group of images and attack."""
    found: dict[str, Any] = {}
    for name in (key for key in answers[0] if key.startswith("synthetic.")):
        judged = kinds >= 0
        trials = [
            Trials(np.asarray(part[name][judged], dtype=np.float64), own[judged])
            for part, own in zip(answers, members, strict=True)
        ]
        attack = name.removeprefix("synthetic.")
        _add(found, "synthetic set", attack, by_group(trials, kinds[judged]))
    return found


def generator_privacy(
    answers: tuple[Answers, ...], members: Bools, kinds: Labels, labels: Labels
) -> dict[str, Any]:
    """Returns what the losses of each generator give away, by group of images and attack.

    Nothing for kinds that have no loss of an image.
    """
    found: dict[str, Any] = {}
    judged = kinds >= 0
    members, labels = members[:, judged], labels[judged]
    for key in (key for key in answers[0] if key.endswith(LOSSES)):
        losses = np.stack([each[key] for each in answers])[:, judged]
        for name, attack in GENERATOR_ATTACKS.items():
            trials = _loss_trials(losses, members, labels, attack)
            _add(found, key.removesuffix(LOSSES), name, by_group(trials, kinds[judged]))
    return found


def _loss_trials(
    losses: Floats, members: Bools, labels: Labels, attack: generator_loss.Config
) -> list[Trials]:
    """Returns the attack on each shadow's generator, made with the losses [S,N] of the others."""
    trials = []
    for number, own in enumerate(members):
        others = np.arange(len(members)) != number
        signals = Signals(
            labels=labels,
            losses=losses[number],
            shadow_losses=losses[others],
            shadow_members=members[others],
        )
        trials.append(Trials(generator_loss.score(signals, attack), own))
    return trials


def _add(found: dict[str, Any], target: str, attack: str, groups: Mapping[str, Aggregate]) -> None:
    for group, each in groups.items():
        found.setdefault(_target(target, group), {}).update(as_result({attack: each}))


def description(config: AuditConfig, seen: Answered, images: int, failures: int) -> dict[str, Any]:
    """Returns how the audit was made: what a reader needs to judge its numbers."""
    fixed = ["validation split"]
    if config.mode == "pipeline" and config.selection == "fixed":
        fixed += ["candidate (the last one)", "knobs"]
    return {
        "mode": config.mode,
        "shadows": len(seen.members),
        "failed_shadows": failures,
        "images": images,
        "canaries": dict.fromkeys(KINDS, config.canaries),
        "queries": config.queries,
        "held_fixed": fixed,
        "primary_attack": PRIMARY,
    }
