"""The stage `audit`: shadows of this run, what they say of every image, and the attacks on that.

A shadow is a run like this one on a random half of the members (canaries included); the validation
split, which makes its choices, is the same for all and no member of any. Each shadow is a part of
its own, so that they can be made in any order and an interrupted audit goes on.

Shapes: S shadows, N images of the pool, P of the population, Q queries, K classes.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from knowledge_recycling import stages
from knowledge_recycling.artefacts import (
    Run,
    candidate_files,
    chosen_candidate,
    chosen_knobs,
    load_source,
    load_student,
    load_teacher,
)
from knowledge_recycling.context import Context
from knowledge_recycling.data.augment import augment
from knowledge_recycling.data.images import ImageSet, Splits, to_bytes, to_unit
from knowledge_recycling.errors import DataError, RunError
from knowledge_recycling.models.contracts import Classifier
from knowledge_recycling.privacy.attacks import synthetic
from knowledge_recycling.privacy.audit import (
    MIN_SHADOWS,
    AuditConfig,
    Shadows,
    as_result,
    attack_shadows,
    by_group,
    overfitted,
    vulnerability,
)
from knowledge_recycling.privacy.canaries import KINDS, Planted, plant
from knowledge_recycling.privacy.many import MIN_PER_SIDE, half_memberships
from knowledge_recycling.privacy.metrics import Trials
from knowledge_recycling.privacy.signals import Bools, Floats, Signals
from knowledge_recycling.randomness import named_seed, numpy_rng, rng
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.recycling.synthesis import draw_set, open_set
from knowledge_recycling.rundir import SCRATCH, perform
from knowledge_recycling.storage import read_arrays, write_arrays, write_json
from knowledge_recycling.training.classifier import DivergedError, predict_logits

SIGNALS = "signals.npz"
SYNTHETIC_ATTACKS = {
    "distance": synthetic.Config(method="distance"),
    "density": synthetic.Config(method="knn_density", neighbours=5),
}
MOST_VULNERABLE = 20
SANITY = "overfitted classifier (sanity)"


def audit(run: Run, folder: Path) -> None:
    """Trains the shadows, attacks them, and writes `audit.json` and the raw scores."""
    config = run.recipe.audit
    planted, members = pool_of(run)
    failures: dict[int, str] = {}
    for number in range(config.shadows):
        run.context.reporter.stage(f"shadow {number + 1} of {config.shadows}")
        part = {"shadow": number, "members": members[number].nonzero()[0].tolist()}
        work = partial(make_shadow, run, planted, members[number], number)
        try:
            perform(shadow_folder(folder, number), part, work)
        except (DataError, DivergedError) as error:  # of this half: the others may do
            failures[number] = str(error)
    if config.shadows - len(failures) < MIN_SHADOWS // 2:
        raise RunError(
            "too few shadows are left to attack",
            where=folder,
            expected=f"at least {MIN_SHADOWS // 2}",
            got=f"{config.shadows - len(failures)}; {next(iter(failures.values()))}",
            next_step="mend the cause, then start again with: kr run RECIPE --redo audit",
        )
    write_audit(run, folder, planted, members, failures)


def pool_of(run: Run) -> tuple[Planted, Bools]:
    """Returns the members with canaries planted among them, and who is IN which shadow, [S,N]."""
    config, seed = run.recipe.audit, run.context.seed
    planted = plant(run.members, config.canaries or 0, numpy_rng(seed, "audit", "canaries"))
    random = numpy_rng(seed, "audit", "members")
    return planted, half_memberships(config.shadows, len(planted.kinds), random)


def shadow_folder(folder: Path, number: int) -> Path:
    """Returns the part of a shadow."""
    return folder / f"shadow-{number:03d}"


def make_shadow(run: Run, planted: Planted, members: Bools, number: int, folder: Path) -> None:
    """Runs the pipeline on the members [N] and writes what it says of every image."""
    shadow = shadow_run(run, planted.pool.subset(members.nonzero()[0]), number, folder / SCRATCH)
    whole = run.recipe.audit.mode == "pipeline"
    _perform(shadow, "teacher", stages.train_teacher)
    if whole:
        _perform(shadow, "generator", stages.train_generator)
        _choose(run, shadow)
        _perform(shadow, "student", stages.distil_student)
    write_arrays(folder / SIGNALS, signals_of(shadow, planted.pool, whole=whole))
    shutil.rmtree(shadow.folder)


def _perform(shadow: Run, name: str, work: Any) -> None:
    perform(shadow.folder / name, {"stage": name}, partial(work, shadow))


def _choose(run: Run, shadow: Run) -> None:
    if run.recipe.audit.selection == "repeated":
        _perform(shadow, "candidates", stages.optimise_checkpoint)
        _perform(shadow, "tuning", stages.tune_knobs)
        return
    name = candidate_files(shadow)[-1].stem
    write_json(shadow.folder / "candidates/candidates.json", [{"name": name, "chosen": True}])
    knobs = dict(chosen_knobs(run))
    write_json(shadow.folder / "tuning/trials.json", [{"knobs": knobs, "chosen": True}])


def shadow_run(run: Run, members: ImageSet, number: int, folder: Path) -> Run:
    """Returns the run of one shadow: this run's recipe on other members, with another seed."""
    context = run.context
    seed = named_seed(context.seed, "audit", "shadow", number)
    return replace(
        run,
        folder=folder,
        recipe=shortened(run.recipe, len(members) / len(run.members)),
        splits=Splits(members, run.val, run.val),
        digests={},
        context=Context(context.fabric, seed, context.reporter),
    )


def shortened(recipe: Recipe, share: float) -> Recipe:
    """Returns the recipe for `share` of the images: trainings change as the derived lengths do."""
    factor = math.sqrt(share)

    def shorter(training: Any) -> Any:
        return training.model_copy(update={"images_seen": round(training.images_seen * factor)})

    generator = shorter(recipe.generator_training)
    if recipe.audit.selection == "fixed":  # the others would not be looked at
        generator = generator.model_copy(update={"candidates": 1})
    teacher, student = recipe.teacher, recipe.student
    return recipe.model_copy(
        update={
            "teacher": teacher.model_copy(update={"training": shorter(teacher.training)}),
            "generator_training": generator,
            "student": student.model_copy(update={"training": shorter(student.training)}),
        }
    )


def signals_of(shadow: Run, pool: ImageSet, *, whole: bool) -> dict[str, npt.NDArray[Any]]:
    """Returns what the shadow's models and images say of the pool and, behind it, the population.

    Logits [Q,N+P,K] of `teacher` and `student`, scores [N] of the attacks on the synthetic set.
    """
    teacher = load_teacher(shadow).classifier
    found: dict[str, npt.NDArray[Any]] = {"teacher": queried(shadow, teacher, pool)}
    if whole:
        found["student"] = queried(shadow, load_student(shadow), pool)
        found |= synthetic_scores(shadow, teacher, pool)
    return found


def queried(shadow: Run, classifier: Classifier, pool: ImageSet) -> npt.NDArray[np.float32]:
    """Returns the classifier's logits of pool and population, [Q,N+P,K]; query 0 is unaugmented."""
    names = shadow.recipe.generator_training.augment or ()
    answers = []
    for query in range(shadow.recipe.audit.queries):
        parts = []
        for image_set in (pool, shadow.val):
            seen = image_set
            if query:
                images = augment(to_unit(image_set.images), ("shift", *names), rng(query, "query"))
                seen = replace(image_set, images=to_bytes(images).numpy())
            parts.append(predict_logits(classifier, seen, shadow.context.fabric))
        answers.append(np.concatenate(parts))
    return np.asarray(np.stack(answers), dtype=np.float32)


def synthetic_scores(shadow: Run, teacher: Classifier, pool: ImageSet) -> dict[str, Floats]:
    """Returns scores [N] of the attacks on a synthetic set as large as the shadow's members."""
    source = load_source(
        shadow, load_teacher(shadow), chosen_candidate(shadow), chosen_knobs(shadow)
    )
    path = shadow.folder / "synthetic.npy"
    draw_set(source, len(shadow.members), path, ("audit", "synthetic"), shadow.context)
    drawn = open_set(path, pool.class_names)
    scores = {}
    for space, view in (("pixels", _pixels), ("features", partial(_features, shadow, teacher))):
        seen = Signals(
            labels=pool.labels,
            features=view(pool),
            synthetic_features=view(drawn),
            reference_features=view(shadow.val),
        )
        for name, config in SYNTHETIC_ATTACKS.items():
            scores[f"synthetic.{name}_{space}"] = synthetic.score(seen, config)
    return scores


def _pixels(image_set: ImageSet) -> Floats:
    return image_set.images.reshape(len(image_set), -1) / 255


def _features(shadow: Run, teacher: Classifier, image_set: ImageSet) -> Floats:
    return stages.features(shadow, teacher, image_set)


def write_audit(
    run: Run, folder: Path, planted: Planted, members: Bools, failures: dict[int, str]
) -> None:
    """Writes `audit.json`: what every attack found, how, and what was held fixed."""
    done = [number for number in range(len(members)) if number not in failures]
    parts = [read_arrays(shadow_folder(folder, number) / SIGNALS) for number in done]
    members = members[done]
    judged = enough_shadows(members)
    targets, accuracy = targets_of(run, planted, members, parts)
    privacy: dict[str, Any] = {}
    for target, shadows in targets.items():
        for group, found in attack_shadows(shadows).items():
            privacy[_target(target, group)] = as_result(found)
    privacy |= synthetic_privacy(parts, members, np.where(judged, planted.kinds, -1))
    ranks = vulnerability(list(targets.values())[-1])  # of the student, where there is one
    most = np.argsort(-ranks)[:MOST_VULNERABLE]
    write_arrays(folder / "members.npz", {"members": members, "kinds": planted.kinds})
    about = description(run.recipe.audit, len(done), int(judged.sum()), failures)
    vulnerable = np.flatnonzero(judged)[most].tolist()
    write_json(
        folder / "audit.json",
        {
            "privacy": privacy,
            "audit": about | {"sanity_training_accuracy": accuracy},
            "vulnerable": [
                {"image": image, "separation": float(ranks[i])}
                for image, i in zip(vulnerable, most, strict=True)
            ],
        },
    )


def enough_shadows(members: Bools) -> Bools:
    """Returns which images [N] have two shadows on either side: failed ones may take the last."""
    counts = members.sum(axis=0)
    return np.asarray(np.minimum(counts, len(members) - counts) >= MIN_PER_SIDE)


def targets_of(
    run: Run, planted: Planted, members: Bools, parts: list[dict[str, npt.NDArray[Any]]]
) -> tuple[dict[str, Shadows], float]:
    """Returns the shadows of each kind of target, and the sanity row's training accuracy."""
    outside = np.zeros((len(parts), len(run.val)), dtype=np.bool_)
    everyone = np.concatenate([members, outside], axis=1)
    labels = np.concatenate([planted.pool.labels, run.val.labels])
    kinds = np.concatenate([planted.kinds, np.full(len(run.val), -1)])
    seen = np.concatenate([enough_shadows(members), ~outside[0]])
    memorised, accuracy = overfitted(planted.pool, run.val, everyone, run.context.seed)
    names = [name for name in ("teacher", "student") if name in parts[0]]
    logits = {SANITY: memorised} | {name: np.stack([p[name] for p in parts]) for name in names}
    targets = {
        name: Shadows(values[:, :, seen], everyone[:, seen], labels[seen], kinds[seen])
        for name, values in logits.items()
    }
    return targets, accuracy


def _target(name: str, group: str) -> str:
    return name if group == "images" else f"{name}, {group.replace('_', '-')} canaries"


def synthetic_privacy(
    parts: list[dict[str, npt.NDArray[Any]]], members: Bools, kinds: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Returns what the attacks on the synthetic sets found, by group of images and attack."""
    found: dict[str, Any] = {}
    for name in (key for key in parts[0] if key.startswith("synthetic.")):
        judged = kinds >= 0
        trials = [
            Trials(np.asarray(part[name][judged], dtype=np.float64), own[judged])
            for part, own in zip(parts, members, strict=True)
        ]
        for group, each in by_group(trials, kinds).items():
            attack = as_result({name.removeprefix("synthetic."): each})
            found.setdefault(_target("synthetic set", group), {}).update(attack)
    return found


def description(
    config: AuditConfig, shadows: int, images: int, failures: dict[int, str]
) -> dict[str, Any]:
    """Returns how the audit was made: what a reader needs to judge its numbers."""
    fixed = ["validation split"]
    if config.mode == "pipeline" and config.selection == "fixed":
        fixed += ["candidate (the last one)", "knobs"]
    return {
        "mode": config.mode,
        "shadows": shadows,
        "failed_shadows": len(failures),
        "images": images,
        "canaries": dict.fromkeys(KINDS, config.canaries),
        "queries": config.queries,
        "held_fixed": fixed,
        "primary_attack": "lira",
    }
