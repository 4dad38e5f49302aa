"""Does a set train that is many times larger than the memory?

    python -m benchmarks.mapped bloodmnist_rebuilt.npz --cap 1 --times 10 --out runs/mapped

Writes an archive that is not compressed, of copies of the set's training images with noise, then
runs the whole pipeline on it, with short trainings, in a control group (Linux, root) whose memory
is capped. Anonymous memory and the file's cached pages count together; the latter may be dropped,
so that "peak" is the cap. What may not be dropped is read every second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.limit import print_table
from benchmarks.seeds import run_command

GIB = 1 << 30
CHUNK = 4096
NOISE = 4
"""Largest change of a pixel: enough that no two images are equal, too little to be seen."""
SETTINGS = {
    "teacher.training.images_seen": 4_000,
    "generator_training.images_seen": 4_000,
    "generator_training.candidates": 2,
    "student.training.images_seen": 4_000,
    "student.synthesis.set_size": 0.001,
    "tuning.trials": 0,
    "compute.threads": 1,
}
GROUPS = Path("/sys/fs/cgroup")


def write_large(source: Path, size: int, out: Path) -> int:
    """Writes an archive with `size` bytes of training images; returns how many images that is."""
    arrays = dict(np.load(source))
    images, labels = arrays["train_images"], arrays["train_labels"].reshape(-1)
    count = int(size // images[0].nbytes)
    rng = np.random.default_rng(0)
    rows = np.arange(count) % len(images)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("train_images.npy", "w", force_zip64=True) as stream:
            about = np.lib.format.header_data_from_array_1_0(images)
            about["shape"] = (count, *images.shape[1:])
            np.lib.format.write_array_header_1_0(stream, about)
            for start in range(0, count, CHUNK):
                part = images[rows[start : start + CHUNK]]
                noise = rng.integers(-NOISE, NOISE, part.shape, np.int8, endpoint=True)
                stream.write(np.clip(part.astype(np.int16) + noise, 0, 255).astype(np.uint8).data)
        rest = {name: array for name, array in arrays.items() if not name.startswith("train_")}
        for name, array in (rest | {"train_labels": labels[rows]}).items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array))
    return count


@contextmanager
def capped(limit: int) -> Iterator[Path]:
    """Yields a control group of at most `limit` bytes, which is removed at the end."""
    second = (GROUPS / "cgroup.controllers").exists()
    own = next(
        line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.split(":")[1] == ("" if second else "memory")
    )
    group = (GROUPS if second else GROUPS / "memory") / own.lstrip("/") / "kr-mapped"
    group.mkdir()
    (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit))
    try:
        yield group
    finally:
        group.rmdir()


def anonymous(group: Path) -> int:
    """Returns the bytes in use of a group that are no cached pages of a file."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(stat.get("anon") or stat["rss"])


def run(archive: Path, out: Path, group: Path) -> int:
    """Runs the pipeline on the archive in the group; returns the most anonymous memory."""
    recipe = out / "mapped.toml"
    recipe.write_text(f'[data]\nkind = "npz"\npath = "{archive.resolve()}"\n')
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    command = run_command(recipe, out / "run", settings)
    enter = f'echo $$ > "{group}/cgroup.procs"; exec "$@"'
    child = subprocess.Popen(["sh", "-c", enter, "sh", *command])
    most = 0
    while child.poll() is None:
        most = max(most, anonymous(group))
        time.sleep(1)
    if child.returncode:
        raise SystemExit(f"the run ended with exit code {child.returncode}")
    return most


def main() -> None:
    """Runs, prints the table in Markdown and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--cap", type=float, default=1.0, help="GiB")
    parser.add_argument("--times", type=float, default=10.0, help="size of the set, in caps")
    parser.add_argument("--out", type=Path, default=Path("runs/mapped"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    archive = given.out / "large.npz"
    count = write_large(given.source, round(given.cap * given.times * GIB), archive)
    start = time.perf_counter()
    with capped(round(given.cap * GIB)) as group:
        most = run(archive, given.out, group)
    row = {
        "cap MiB": given.cap * 1024,
        "set MiB": archive.stat().st_size / (1 << 20),
        "images": count,
        "anonymous MiB": most / (1 << 20),
        "seconds": time.perf_counter() - start,
    }
    archive.unlink()
    print_table("set", {"mapped": row})
    (given.out / "mapped.json").write_text(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
