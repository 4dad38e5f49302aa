"""How few network evaluations does sampling need? CAS against evaluations of the flow.

    python -m benchmarks.evaluations runs/pneumoniamnist --seeds 3 --out runs/evaluations

Takes the teacher and the chosen candidate of a finished run. For each number of midpoint steps (two
evaluations each, the last one) and of evaluations the sampler is distilled to, and for each seed,
students like those of Checkpoint Optimisation, or longer ones (`--share`), learn by GKD from such
images; their accuracies are on the validation split, since this is a choice. Intervals over seeds
are Student's t, 95 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from knowledge_recycling import pipeline
from knowledge_recycling.artefacts import Run, chosen_candidate, chosen_source, load_teacher
from knowledge_recycling.choosing import Question, scores_of
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.recycling.acceleration import (
    Accelerated,
    distil_sampler,
    evaluations_of,
    num_images,
)
from knowledge_recycling.recycling.scoring import Score
from knowledge_recycling.recycling.synthesis import Source
from knowledge_recycling.storage import read_json
from knowledge_recycling.study.table import over_seeds

STEPS = (1, 2, 3, 4, 8)
DISTILLED = (1, 2, 4)


@dataclass(frozen=True)
class Sampler:
    """A way to draw images from the run's generator."""

    name: str
    weights: Path
    knobs: Knobs
    evaluations: int
    distance: float | None = None
    """Of a distilled sampler to the one it was distilled from, see `Accelerated`."""


def midpoint(run: Run, source: Source, steps: int) -> Sampler:
    """Returns sampling with so many midpoint steps."""
    knobs = {"steps": steps}
    evaluations = evaluations_of(source.generator, knobs)
    return Sampler(f"steps-{steps}", chosen_candidate(run), knobs, evaluations)


def distilled(run: Run, source: Source, evaluations: int, out: Path) -> Sampler:
    """Returns the default sampler distilled to so many evaluations, as for the run's student."""
    leave = out / f"distilled-{evaluations}"
    if not leave.with_suffix(".json").exists():
        images = num_images(run.recipe.student.training.images_seen)
        distil_sampler(source, evaluations, images, leave, run.context)
    about = Accelerated(**read_json(leave.with_suffix(".json")))
    weights = leave.with_suffix(".safetensors")
    return Sampler(leave.name, weights, about.knobs, evaluations, about.distance)


def scores_of_samplers(
    run: Run, samplers: Sequence[Sampler], seeds: int, out: Path
) -> dict[str, list[Score]]:
    """Returns the scores of each sampler by name, one for each seed; known ones are read."""
    found: dict[str, list[Score]] = {each.name: [] for each in samplers}
    share = run.recipe.selection.training_share
    for seed in range(seeds):
        seeded = replace(run, context=replace(run.context, seed=run.context.seed + seed))
        questions = [
            Question(
                each.weights,
                each.knobs,
                out / f"{each.name}-seed-{seed}",
                {"sampler": each.name, "seed": seed, "share": share},
            )
            for each in samplers
        ]
        for each, score in zip(samplers, scores_of(seeded, questions, out), strict=True):
            found[each.name].append(score)
    return found


def row(sampler: Sampler, scores: Sequence[Score], best: float) -> dict[str, float | None]:
    """Returns the figures of one sampler, in per cent, points and images per second."""
    cas = over_seeds([100 * (each.cas or 0) for each in scores])
    robust = over_seeds([100 * (each.robust_cas or 0) for each in scores])
    rates = [each.images_per_second or 0 for each in scores]
    return {
        "evaluations": sampler.evaluations,
        "distance": sampler.distance,
        "CAS": cas.mean,
        "+-": None if cas.high is None or cas.mean is None else cas.high - cas.mean,
        "below the best": best - (cas.mean or 0),
        "robust CAS": robust.mean,
        "AUROC": over_seeds([100 * (each.auroc or 0) for each in scores]).mean,
        "loss": over_seeds([each.loss or 0 for each in scores]).mean,
        "images/s": max(rates),
    }


def main() -> None:
    """Measures, prints the table in Markdown and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run with the flow generator")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, help="length of the students, of the full one's")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluations"))
    given = parser.parse_args()
    recipe = pipeline.given_recipe(given.run)
    run = pipeline.prepare(recipe, load_splits(recipe.data), given.run, SilentReporter())
    if given.share is not None:
        selection = run.recipe.selection.model_copy(update={"training_share": given.share})
        run = replace(run, recipe=run.recipe.model_copy(update={"selection": selection}))
    given.out.mkdir(parents=True, exist_ok=True)
    source = chosen_source(run, load_teacher(run))
    samplers = [midpoint(run, source, steps) for steps in STEPS]
    samplers += [distilled(run, source, evaluations, given.out) for evaluations in DISTILLED]
    found = scores_of_samplers(run, samplers, given.seeds, given.out)
    best = max(
        over_seeds([100 * (s.cas or 0) for s in scores]).mean or 0 for scores in found.values()
    )
    rows = [row(each, found[each.name], best) for each in samplers]
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for each in rows:
        print("| " + " | ".join("-" if v is None else f"{v:.4g}" for v in each.values()) + " |")
    (given.out / "evaluations.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
