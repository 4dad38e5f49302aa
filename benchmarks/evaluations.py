"""How few network evaluations does sampling need? CAS against steps of the flow.

    python -m benchmarks.evaluations runs/pneumoniamnist --seeds 3 --out runs/evaluations.json

Takes the teacher and the chosen candidate of a finished run. For each number of midpoint steps and
each seed, students like those of Checkpoint Optimisation, or longer ones (`--share`), learn by GKD
with that many steps; their accuracies are on the validation split, since this is a choice. A step
takes two evaluations, the last one. Intervals over seeds are Student's t, 95 %.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from knowledge_recycling import pipeline
from knowledge_recycling.artefacts import Run, chosen_candidate
from knowledge_recycling.choosing import Question, scores_of
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.recycling.scoring import Score
from knowledge_recycling.study.table import over_seeds

STEPS = (1, 2, 3, 4, 8)


def scores_by_steps(run: Run, seeds: int, out: Path) -> dict[int, list[Score]]:
    """Returns the scores for each number of steps, one for each seed; known ones are read."""
    found: dict[int, list[Score]] = {steps: [] for steps in STEPS}
    for seed in range(seeds):
        seeded = replace(run, context=replace(run.context, seed=run.context.seed + seed))
        questions = [
            Question(
                chosen_candidate(run),
                {"steps": steps},
                out / f"steps-{steps}-seed-{seed}",
                {"steps": steps, "seed": seed, "share": run.recipe.selection.training_share},
            )
            for steps in STEPS
        ]
        for steps, score in zip(STEPS, scores_of(seeded, questions, out), strict=True):
            found[steps].append(score)
    return found


def row(steps: int, scores: Sequence[Score], best: float) -> dict[str, float | None]:
    """Returns the figures of one number of steps, in per cent, points and images per second."""
    cas = over_seeds([100 * (each.cas or 0) for each in scores])
    robust = over_seeds([100 * (each.robust_cas or 0) for each in scores])
    rates = [each.images_per_second or 0 for each in scores]
    return {
        "evaluations": 2 * steps - 1,
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
    found = scores_by_steps(run, given.seeds, given.out)
    best = max(
        over_seeds([100 * (s.cas or 0) for s in scores]).mean or 0 for scores in found.values()
    )
    rows = [row(steps, scores, best) for steps, scores in found.items()]
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for each in rows:
        print("| " + " | ".join("-" if v is None else f"{v:.4g}" for v in each.values()) + " |")
    (given.out / "evaluations.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
