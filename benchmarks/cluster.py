"""How long would an audit of many shadows take on 1, 8 and 64 GPUs? Simulated, not measured.

    python -m benchmarks.cluster RUN --speed-up X --start-up S --out runs/cluster.json

Measured: the seconds of each shadow of an audited run. Assumed, so that both have to be given: how
many times faster a GPU makes a shadow than a worker of that run did, and the seconds until a worker
does its first part. Each worker takes the next part when it is free, as `fanout` gives them out.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from knowledge_recycling.rundir import record_of

WORKERS = (1, 8, 64)


@dataclass(frozen=True)
class Row:
    """An audit on so many workers."""

    workers: int
    hours: float
    """From the start of the workers to the end of the last part."""
    worker_hours: float
    """Paid for: of all workers together, idle ones too."""
    speed_up: float
    """Against one worker."""
    busy: float
    """Share of the workers' time that was spent on parts."""


def seconds_of(run: Path) -> list[float]:
    """Returns the seconds that each finished shadow of a run took, over all its sessions."""
    folders = sorted((run / "audit").glob("shadow-*"))
    records = [record_of(folder) for folder in folders]
    return [float(each["seconds"]) for each in records if each and "outputs" in each]


def makespan(seconds: Sequence[float], workers: int, start_up: float) -> float:
    """Returns when the last part ends if each free worker takes the next one.

    >>> makespan([3, 1, 1, 1], workers=2, start_up=1)
    4
    """
    free = [start_up] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def simulate(measured: Sequence[float], parts: int, speed_up: float, start_up: float) -> list[Row]:
    """Returns a row for each number of workers; measured parts are taken in turn, and again."""
    seconds = [each / speed_up for each in itertools.islice(itertools.cycle(measured), parts)]
    alone = makespan(seconds, 1, start_up)
    rows = []
    for workers in WORKERS:
        end = makespan(seconds, workers, start_up)
        paid = workers * end
        rows.append(Row(workers, end / 3600, paid / 3600, alone / end, sum(seconds) / paid))
    return rows


def main() -> None:
    """Prints the table in Markdown and writes it as JSON with all that it rests on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run that was audited")
    parser.add_argument("--parts", type=int, default=256, help="shadows of the simulated audit")
    parser.add_argument("--speed-up", type=float, required=True, help="assumed, of a GPU")
    parser.add_argument("--start-up", type=float, required=True, help="assumed, seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cluster.json"))
    given = parser.parse_args()
    measured = seconds_of(given.run)
    if not measured:
        parser.error(f"{given.run} has no finished shadows")
    rows = simulate(measured, given.parts, given.speed_up, given.start_up)
    print(
        f"{given.parts} shadows; measured: {len(measured)} shadows, median "
        f"{statistics.median(measured):.0f} s, longest {max(measured):.0f} s; assumed: a GPU is "
        f"{given.speed_up:g} times as fast as a worker there, start-up {given.start_up:g} s"
    )
    print("| workers | hours | worker hours | times faster | busy |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.workers} | {row.hours:.2f} | {row.worker_hours:.1f} | {row.speed_up:.1f} "
            f"| {row.busy:.0%} |"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    assumed = {"speed_up": given.speed_up, "start_up_seconds": given.start_up}
    content = {"parts": given.parts, "measured_seconds": measured, "assumed": assumed}
    content["rows"] = [asdict(row) for row in rows]
    given.out.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
