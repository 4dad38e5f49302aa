"""The kinds of generators side by side: as many minutes of training each, on one set.

    python -m benchmarks.generators recipes/pneumoniamnist.toml --minutes 15 --out runs/generators

A short probe finds how many images of each kind's training fit the minutes. Then a study trains,
for each kind, a student on hard labels and one by GKD on its images: their accuracy on the test
split is the CAS. Quality is in the space of the teacher's features. Nearest members: the median
distance from a synthetic image to the nearest member over that to the nearest holdout image (of
the test split, as many of each); well below 1 says that members are copied.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min as nearest

import knowledge_recycling as kr
from knowledge_recycling import pipeline, stages
from knowledge_recycling.artefacts import Run, chosen_source, load_teacher
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.recycling.synthesis import draw_set, open_set
from knowledge_recycling.study.plan import Row, Study
from knowledge_recycling.study.run import run_study
from knowledge_recycling.training.loop import read_records

KINDS = ("flow", "biggan", "r3gan")
PROBE = 4000
"""Images of the probe's training; its speed is read over the second half."""


def probed_rate(recipe: Path, kind: str, settings: Sequence[str], out: Path) -> float:
    """Returns the images per second that a kind's training takes."""
    short = [
        f"generator.kind={kind}",
        f"generator_training.images_seen={PROBE}",
        "generator_training.candidates=2",
        "teacher.training.images_seen=64",
    ]
    given = kr.Recipe.load(recipe, [*settings, *short])
    kr.run(given, out, until="generator", reporter=SilentReporter())
    return read_records(out / "generator")[-1]["images_per_second"]


def rows_of(kind: str, images_seen: int) -> list[Row]:
    """Returns the rows of the study for one kind."""
    made = (f"generator.kind={kind}", f"generator_training.images_seen={images_seen}")
    return [
        Row(name=f"{kind}, hard", settings=(*made, "student.hard_weight=1.0")),
        Row(name=f"{kind}, GKD", settings=(*made, "student.hard_weight=0.0")),
    ]


def nearest_ratio(run: Run, size: int) -> dict[str, float]:
    """Returns how much nearer synthetic images lie to members than to holdout images."""
    teacher = load_teacher(run)
    path = run.folder.parent / "nearest.npy"
    draw_set(chosen_source(run, teacher), size, path, ("benchmark", "nearest"), run.context)
    synthetic = open_set(path, run.members.class_names)
    few = min(len(run.members), len(run.splits.test))
    sides = [run.members.evenly(few), run.splits.test.evenly(few)]

    def pixels(images: ImageSet) -> np.ndarray[Any, Any]:
        return np.asarray(images.images.reshape(len(images), -1), dtype=np.float64) / 255

    def features(images: ImageSet) -> np.ndarray[Any, Any]:
        return stages.features(run, teacher.classifier, images)

    ratios = {}
    for name, view in (("pixels", pixels), ("features", features)):
        far = [np.median(nearest(view(synthetic), view(side))[1]) for side in sides]
        ratios[f"nearest member / holdout, {name}"] = float(far[0] / far[1])
    return ratios


def measures(study: Study, kind: str, outcomes: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Returns the row of one kind."""
    cell = next(each for each in study.cells() if each.row.name.startswith(f"{kind}, "))
    recipe = study.recipe(cell, cell.row.run_settings)
    folder = out / cell.run_folder
    run = pipeline.prepare(recipe, load_splits(recipe.data), folder, SilentReporter())
    result = kr.read_result(folder)
    cas = {
        label: 100 * each["test"]["accuracy"]
        for label in ("hard", "GKD")
        for each in outcomes
        if each["row"] == f"{kind}, {label}"
    }
    speed, quality = result.cost.images_per_second, result.quality
    return {
        "training minutes": result.cost.seconds["generator"] / 60,
        "training images/s": speed["generator"],
        "sampling images/s": speed["sampling"],
        **{f"CAS, {label}": value for label, value in cas.items()},
        "Frechet distance": quality["frechet_distance"],
        "KID": quality["kernel_distance"],
        "precision": quality["precision"],
        "recall": quality["recall"],
        "coverage": quality["coverage"],
        **nearest_ratio(run, 1000),
    }


def main() -> None:
    """Runs, prints the table in Markdown and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/generators"))
    given = parser.parse_args()
    table = {}
    for kind in given.kinds:
        known = given.out / f"{kind}.json"
        if not known.exists():
            rate = probed_rate(given.recipe, kind, given.set, given.out / f"probe-{kind}")
            known.write_text(json.dumps({"images_seen": round(rate * 60 * given.minutes)}))
        rows = rows_of(kind, json.loads(known.read_text())["images_seen"])
        study = Study(
            sets={given.recipe.stem: given.recipe},
            seeds=(given.seed,),
            settings=tuple(given.set),
            rows=tuple(rows),
        )
        out = given.out / kind
        run_study(study, out)
        outcomes = json.loads((out / "table.json").read_text())["cells"]
        table[kind] = measures(study, kind, outcomes, out)
    names = list(next(iter(table.values())))
    print("| kind | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for kind, row in table.items():
        print(f"| {kind} | " + " | ".join(f"{row[name]:.3g}" for name in names) + " |")
    (given.out / "generators.json").write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
