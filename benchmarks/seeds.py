"""Runs a recipe with several seeds and prints a table: accuracy, gap, minutes, peak memory.

    python -m benchmarks.seeds recipes/digits.toml --seeds 3 --out runs/seeds

Runs that are there already are read, not repeated. Intervals over seeds are Student's t, 95 %.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from knowledge_recycling import Result, read_result
from knowledge_recycling.study.table import over_seeds


def run_command(recipe: Path, out: Path, settings: Iterable[str]) -> list[str]:
    """Returns the words of the command that runs a recipe in a process of its own."""
    command = [sys.executable, "-m", "knowledge_recycling.cli", "run", str(recipe)]
    return [*command, "--out", str(out), *(f"--set={setting}" for setting in settings)]


def run(recipe: Path, seed: int, out: Path, settings: Sequence[str] = ()) -> Result:
    """Returns the result of one seed, running the command line unless it is there."""
    if not (out / "result.json").exists():
        start = time.monotonic()
        subprocess.run(run_command(recipe, out, [f"seed={seed}", *settings]), check=True)
        (out / "wall_seconds").write_text(str(time.monotonic() - start))
    return read_result(out)


def row(result: Result, out: Path) -> dict[str, float | None]:
    """Returns the figures of one run; accuracy, AUROC and gaps in percent and points."""
    teacher, student = result.teacher.test, result.student.test
    wall = out / "wall_seconds"
    stages = sum(result.cost.seconds.values())
    return {
        "teacher accuracy": 100 * (teacher.accuracy.value or 0),
        "student accuracy": 100 * (student.accuracy.value or 0),
        "gap": result.gap.accuracy_pp,
        "teacher AUROC": 100 * (teacher.auroc.value or 0),
        "student AUROC": 100 * (student.auroc.value or 0),
        "AUROC gap": result.gap.auroc_pp,
        "minutes": (float(wall.read_text()) if wall.exists() else stages) / 60,
        "peak MiB": result.cost.peak_rss_mib,
    }


def mean_interval(values: list[float]) -> str:
    """Returns mean and half width of the 95 % t interval over seeds.

    >>> mean_interval([1.0, 2.0, 3.0])
    '2.00 +- 2.48'
    """
    over = over_seeds(values)
    half = math.nan if over.high is None or over.mean is None else over.high - over.mean
    return f"{over.mean:.2f} +- {half:.2f}"


def main() -> None:
    """Runs, prints the table in Markdown and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    rows = {}
    for seed in range(given.seeds):
        out = given.out / f"{given.recipe.stem}-{seed}"
        rows[str(seed)] = row(run(given.recipe, seed, out, given.set), out)
    names = list(rows["0"])
    print("| seed | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for seed, values in rows.items():
        print(f"| {seed} | " + " | ".join(f"{values[name]:.2f}" for name in names) + " |")
    means = [mean_interval([values[name] for values in rows.values()]) for name in names]
    print("| mean | " + " | ".join(means) + " |")
    (given.out / f"{given.recipe.stem}.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
