"""`result.json`: the finished stages of a run in one file (schema: `reporting.result`)."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from knowledge_recycling.artefacts import DATA, ENSEMBLE, STUDENT, Run, chosen, chosen_knobs
from knowledge_recycling.recipe import Recipe, changed_settings
from knowledge_recycling.recycling.acceleration import accelerations
from knowledge_recycling.rundir import DONE, output_digest, record_of
from knowledge_recycling.storage import read_json, write_json
from knowledge_recycling.training.loop import read_records

RESULT = "result.json"
ROWS = "rows.json"
"""Further classifiers of a run, measured by a study."""
TRAINED = ("teacher", "generator", "student")
"""Stages with one training."""

LIBRARIES = ("knowledge-recycling", "torch", "torchvision", "timm", "numpy", "optuna")


def summarise(run: Run, given: Recipe, stages: Sequence[str]) -> dict[str, Any]:
    """Returns the content of `result.json`.

    Args:
        run: The run, all its stages done.
        given: The recipe before it was completed.
        stages: Names of all stages, first to last; one that is not done was not asked for.
    """
    seen = read_json(run.folder / "data" / DATA)
    candidates = read_json(run.folder / "candidates/candidates.json")
    trials = read_json(run.folder / "tuning/trials.json")
    evaluation = read_json(run.folder / "evaluation/evaluation.json")
    audited = run.folder / "audit/audit.json"
    audit = read_json(audited) if run.recipe.audit.shadows else {"privacy": {}, "audit": None}
    return {
        "schema": "1",
        "dataset": {
            "kind": run.recipe.data.kind,
            "name": dataset_name(run.recipe),
            **{key: seen[key] for key in ("shape", "classes", "counts", "warnings")},
        },
        "profile": "cpu" if run.context.fabric.device.type == "cpu" else "gpu",
        "seed": run.recipe.seed,
        "teacher": evaluation["teacher"],
        "student": evaluation["student"],
        "ensemble": evaluation.get(ENSEMBLE),
        "gap": evaluation["gap"],
        "fidelity": evaluation.get("fidelity", {}),
        "rows": rows_of(run.folder),
        "chosen": {
            "candidate": chosen(run.folder / "candidates/candidates.json")["name"],
            "knobs": dict(chosen_knobs(run)),
        },
        "candidates": candidates,
        "tuning": trials,
        "further_generators": {
            str(each.further): further_generator(each) for each in run.of_further
        },
        "selection": selection(run, candidates, trials),
        "accelerated": [
            asdict(each) | {"used": each.used} for each in accelerations(run.folder / "student")
        ],
        "quality": read_json(run.folder / "evaluation/quality.json"),
        "privacy": audit["privacy"],
        "audit": audit["audit"],
        "cost": cost(run, candidates, stages),
        "changed_settings": changed_settings(given),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in LIBRARIES},
        "digests": dict(run.digests),
        "stages": {
            name: output_digest(folder) for name, folder in done_stages(run, stages).items()
        },
    }


def keep_rows(run_folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the `rows` (name, utility by split) that the run's next `result.json` is to show."""
    evaluated = output_digest(run_folder / "evaluation")
    write_json(run_folder / ROWS, {"evaluation": evaluated, "rows": rows})


def rows_of(run_folder: Path) -> list[dict[str, Any]]:
    """Returns the rows that were kept; none if the run was evaluated anew with another outcome."""
    path = run_folder / ROWS
    kept = read_json(path) if path.exists() else {}
    alike = kept.get("evaluation") == output_digest(run_folder / "evaluation")
    return list(kept["rows"]) if alike else []


def further_generator(run: Run) -> dict[str, Any]:
    """Returns what was tried and chosen for the further generator that `run` is seen for."""
    candidates, trials = (
        run.folder / stage / run.part / table
        for stage, table in (("candidates", "candidates.json"), ("tuning", "trials.json"))
    )
    return {
        "kind": run.generator.kind,
        "chosen": {"candidate": chosen(candidates)["name"], "knobs": dict(chosen_knobs(run))},
        "candidates": read_json(candidates),
        "tuning": read_json(trials),
    }


def dataset_name(recipe: Recipe) -> str:
    """Returns a short name of the set: its own, its file's or folder's, or its kind."""
    data = recipe.data.model_dump()
    path = data.get("path") or data.get("root")
    return str(data.get("name") or (Path(path).stem if path else data["kind"]))


def selection(
    run: Run, candidates: list[dict[str, Any]], trials: list[dict[str, Any]]
) -> dict[str, float | None]:
    """Returns what choosing gained on validation, in percentage points, and what it took."""
    limit = run.recipe.tuning.leakage_limit
    return {
        "gain_over_last_candidate_pp": gain(candidates, candidates[-1]),
        "gain_over_default_knobs_pp": gain(trials, trials[0]),
        "seconds": seconds(run, "candidates") + seconds(run, "tuning"),
        "leakage_limit": limit,
        "cost_of_limit_pp": None if limit is None else cost_of_limit(candidates, trials),
        "student_leakage": read_json(run.folder / "student" / STUDENT).get("leakage"),
    }


def cost_of_limit(candidates: list[dict[str, Any]], trials: list[dict[str, Any]]) -> float:
    """Returns the merit that the leakage limit has cost, in percentage points.

    Trials are of the candidate chosen under the limit, so it is what the limit cost among them, and
    among the candidates before.
    """
    tables = (candidates, trials)
    lost = [gain(table, row) for table in tables for row in table if row["chosen_without_limit"]]
    return 0.0 - sum(each or 0.0 for each in lost)


def gain(table: list[dict[str, Any]], baseline: dict[str, Any]) -> float | None:
    """Returns the merit of the chosen row minus that of `baseline`, in percentage points."""
    best = next(row for row in table if row["chosen"])
    if baseline["cas"] is None:
        return None
    gains = [float(best[name] - baseline[name]) for name in ("cas", "robust_cas")]
    return 100 * sum(gains) / len(gains)


def cost(run: Run, candidates: list[dict[str, Any]], stages: Sequence[str]) -> dict[str, Any]:
    """Returns seconds by stage, images per second by task, and the peak memory."""
    done = done_stages(run, stages)
    records = {name: record_of(folder) or {} for name, folder in done.items()}
    sampling = [row["images_per_second"] for row in candidates if row["images_per_second"]]
    rates = {name: training_rate(run.folder / name) for name in TRAINED}
    return {
        "seconds": {name: record["seconds"] for name, record in records.items()},
        "images_per_second": rates | {"sampling": max(sampling, default=None)},
        "peak_rss_mib": max(record["peak_rss_mib"] for record in records.values()),
    }


def done_stages(run: Run, stages: Sequence[str]) -> dict[str, Path]:
    """Returns the folders of those of the `stages` that are done, in their order."""
    return {name: run.folder / name for name in stages if (run.folder / name / DONE).exists()}


def seconds(run: Run, stage: str) -> float:
    """Returns the seconds a stage has worked."""
    record = record_of(run.folder / stage)
    return float(record["seconds"]) if record else 0.0


def training_rate(stage: Path) -> float:
    """Returns the images per second of a stage's training, the median over its records."""
    rates = sorted(record["images_per_second"] for record in read_records(stage))
    return float(rates[len(rates) // 2])
