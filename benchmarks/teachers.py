"""Settings of the teacher compared by cross-validation: the test split is not looked at.

    python -m benchmarks.teachers recipes/retinamnist.toml --folds 3 --out runs/teachers \
        --variant "long: teacher.training.images_seen=150000" \
        --variant "one teacher: further_teachers=0"

Training and validation images are pooled and cut into folds, stratified. For each fold teachers
(one, or as many as `further_teachers` asks for) are trained on the rest, an eighth of which chooses
their snapshots, and measured together on the fold: accuracy, AUROC and the negative log-likelihood
(nats) of the calibrated probabilities with which they label a student's images. A variant's gain is
paired with the defaults fold by fold; its interval is Student's t over folds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, train_test_split

from knowledge_recycling import Recipe, pipeline, stages
from knowledge_recycling.artefacts import ENSEMBLE, load_ensemble
from knowledge_recycling.data.images import ImageSet, Splits
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.evaluation.utility import measure_utility
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.rundir import perform
from knowledge_recycling.study.table import over_seeds

Measures = dict[str, float]


class Quiet(SilentReporter):
    """Leaves the set's warnings unsaid: folds are no splits of the user's."""

    def warn(self, message: str) -> None:
        """Ignores the sentence."""


def folds_of(splits: Splits, folds: int, seed: int) -> Iterator[Splits]:
    """Yields splits of the pooled training and validation images, `test` being the fold."""
    train, val = splits.train, splits.val
    pool = ImageSet(
        np.concatenate([train.images, val.images]),
        np.concatenate([train.labels, val.labels]),
        train.class_names,
    )
    cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for rest, fold in cut.split(pool.labels, pool.labels):
        learnt, chosen_by = train_test_split(
            rest, test_size=1 / 8, stratify=pool.labels[rest], random_state=seed
        )
        yield Splits(*(pool.subset(rows) for rows in (learnt, chosen_by, fold)))


def measure(recipe: Recipe, splits: Splits, out: Path) -> Measures:
    """Returns what teachers reach on the fold (percent, nats), trained if they are not."""
    run = pipeline.prepare(recipe, splits, out, Quiet())
    perform(out / "teacher", {"teacher": "of a fold"}, partial(stages.train_teacher, run))
    perform(out / ENSEMBLE, {"teachers": "of a fold"}, partial(stages.train_ensemble, run))
    chances = stages.probabilities(run, load_ensemble(run), splits.test)
    utility = measure_utility(chances, splits.test.labels, np.random.default_rng(0), 100)
    return {
        "accuracy": 100 * float(utility.accuracy.value or 0),
        "AUROC": 100 * float(utility.auroc.value or 0),
        "loss": log_loss(splits.test.labels, chances, labels=range(splits.test.num_classes)),
    }


def compared(rows: dict[str, list[Measures]]) -> Iterator[str]:
    """Yields the lines of a table: means over folds, and gains over the defaults with intervals."""
    keys = {"accuracy": 2, "AUROC": 2, "loss": 3}
    yield "| variant | " + " | ".join([*keys, *(f"gain in {key}" for key in keys)]) + " |"
    yield "|---" * (1 + 2 * len(keys)) + "|"
    (base, *_) = rows.values()
    for name, found in rows.items():
        cells = [f"{np.mean([each[k] for each in found]):.{n}f}" for k, n in keys.items()]
        for key, digits in keys.items():
            gains = over_seeds([a[key] - b[key] for a, b in zip(found, base, strict=True)])
            half = np.nan if gains.high is None else gains.high - (gains.mean or 0.0)
            gain = f"{gains.mean:+.{digits}f} +- {half:.{digits}f}"
            cells.append(gain if found is not base else "")
        yield f"| {name} | " + " | ".join(cells) + " |"


def settings_of(variant: str) -> tuple[str, Sequence[str]]:
    """Returns the name of a variant and its settings.

    >>> settings_of("long and wide: a.b=1; c.d=2")
    ('long and wide', ['a.b=1', 'c.d=2'])
    """
    name, _, settings = variant.partition(":")
    return name.strip(), [each.strip() for each in settings.split(";") if each.strip()]


def main() -> None:
    """Trains, prints the table in Markdown and writes all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/teachers"))
    given = parser.parse_args()
    base = Recipe.load(given.recipe, given.set)
    cut = list(folds_of(load_splits(base.data), given.folds, base.seed))
    rows: dict[str, list[Measures]] = {}
    for variant in ("defaults", *given.variant):
        name, settings = settings_of(variant)
        recipe = Recipe.load(given.recipe, [*given.set, *settings])
        place = given.out / given.recipe.stem / name.replace(" ", "-")
        rows[name] = [measure(recipe, splits, place / f"fold-{i}") for i, splits in enumerate(cut)]
        print(name, rows[name], flush=True)
    print("\n".join(compared(rows)))
    (given.out / f"{given.recipe.stem}.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
