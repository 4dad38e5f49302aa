"""How do time and memory of each stage grow: with images, resolution, classes, size of the set?

    python -m benchmarks.growth bloodmnist_rebuilt.npz --out runs/growth

Runs of a share of the derived lengths, each in a process of its own, on subsets of one real set.
One thing changes at a time. Exponents are those of a straight line through the logarithms; where
the derived lengths grow with the square root of the images, an exponent of .5 says that a step
costs the same however large the set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import from_numpy
from torch.nn.functional import interpolate

from benchmarks.limit import print_table
from benchmarks.seeds import run_command
from knowledge_recycling.rundir import DONE
from knowledge_recycling.training.batches import generator_length

STAGES = ("teacher", "generator", "candidates", "tuning", "student", "evaluation")
COLUMNS = ("teacher", "generator", "candidates", "tuning and student", "evaluation")
"""Where Tuning has trained the student, the stage after it takes no time: hence one column."""
SPLITS = ("train", "val", "test")
PEAK = "peak MiB"


@dataclass(frozen=True)
class Case:
    """One run."""

    images: int = 4000
    """Training images."""
    side: int = 28
    """Pixels per side."""
    classes: int = 8
    set_size: float = 1.0

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.images}-{self.side}px-{self.classes}classes-{self.set_size:g}x"


BASE = Case()
SERIES = {
    "images": [replace(BASE, images=each) for each in (1000, 2000, 4000, 8000, 11_000)],
    "side": [replace(BASE, images=1000, side=each) for each in (28, 64)],
    "classes": [replace(BASE, images=1000, classes=each) for each in (2, 4, 8)],
    "set_size": [replace(BASE, images=1000, set_size=each) for each in (1.0, 4.0, 20.0)],
}


def subset(source: Path, case: Case, out: Path) -> None:
    """Writes random images of the first classes, resized, in the layout of MedMNIST."""
    rng = np.random.default_rng(0)
    with np.load(source, allow_pickle=False) as arrays:
        written = {}
        for split in SPLITS:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel()
            rows = rng.permutation(np.flatnonzero(labels < case.classes))  # files may be sorted
            rows = rows[: case.images if split == "train" else 400]
            written[f"{split}_images"] = resized(images[rows], case.side)
            written[f"{split}_labels"] = labels[rows, None]
    np.savez(out, **written)


def resized(images: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Returns images [N,H,W,C] with `side` pixels per side."""
    if images.shape[1] == side:
        return images
    pixels = from_numpy(images).permute(0, 3, 1, 2).float()
    scaled = interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    return np.asarray(scaled.round().byte().permute(0, 2, 3, 1))


def measure(case: Case, source: Path, share: float, threads: int, out: Path) -> dict[str, float]:
    """Returns seconds by stage and the peak of one run, which is read if it is there."""
    folder = out / case.name
    if not (folder / "result.json").exists():
        images = out / f"{case.name}.npz"
        subset(source, case, images)
        recipe = out / f"{case.name}.toml"
        recipe.write_text(f'[data]\nkind = "npz"\npath = "{images.name}"\n', encoding="utf-8")
        length = round(share * generator_length(case.images))
        settings = [
            f"teacher.training.images_seen={length}",
            f"generator_training.images_seen={length}",
            f"student.training.images_seen={length}",
            f"student.synthesis.set_size={case.set_size}",
            f"compute.threads={threads}",
        ]
        command = run_command(Path(recipe.name), Path(folder.name), settings)
        subprocess.run([*command, "--quiet"], check=True, cwd=out)
        images.unlink()
    records = {name: json.loads((folder / name / DONE).read_text()) for name in STAGES}
    seconds = {name: each["seconds"] for name, each in records.items()}
    seconds["tuning and student"] = seconds["tuning"] + seconds["student"]
    peak = max(each["peak_rss_mib"] for each in records.values())
    return {name: seconds[name] for name in COLUMNS} | {PEAK: peak}


def exponent(sizes: list[float], values: list[float]) -> float:
    """Returns the slope of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> None:
    """Measures, prints a table for each series in Markdown and writes all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="npz file in MedMNIST's layout")
    parser.add_argument("--share", type=float, default=0.05, help="of the derived lengths")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    table = {}
    for what, cases in SERIES.items():
        sizes = [float(getattr(each, what)) for each in cases]
        found = [
            measure(each, given.source, given.share, given.threads, given.out) for each in cases
        ]
        slopes = {
            name: exponent(sizes, [each[name] for each in found]) for name in (*COLUMNS, PEAK)
        }
        rows = dict(zip(map(str, sizes), found, strict=True)) | {"exponent": slopes}
        print_table(what, rows)
        table[what] = rows
    (given.out / "growth.json").write_text(json.dumps(table, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
