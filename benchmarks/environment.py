"""What should the environment say to threads and allocator? Training, alone and beside a neighbour.

    python -m benchmarks.environment recipes/pneumoniamnist.toml --out runs/environment.json

A step is hundreds of small parallel regions: how long should a thread that is done spin before it
sleeps? It takes and frees megabytes: should those go back to the system, and come in huge pages?
Such settings are read when torch is loaded, so each has a process of its own; all take turns. The
neighbour is another such training with one thread. Rates are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

from benchmarks.limit import parts_of, print_table
from knowledge_recycling import Recipe, compute
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.fanout import num_cores
from knowledge_recycling.timing import TEACHING, prepared, seconds_of, wall_clock

GIVEN_BACK = "GIVEN_BACK"
"""Leaves glibc's allocator as it comes; read here alone."""
SETTINGS: dict[str, Mapping[str, str]] = {
    "as the program sets it": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "memory is given back": {GIVEN_BACK: "1"},
    "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},
}
WARM_UP = 5
"""Steps before the clock starts."""
FOREVER = 1e6
"""Seconds of the neighbour, which is killed before."""


def rate(recipe: Path, name: str, threads: int, seconds: float) -> float:
    """Returns the images per second of this process at the named part of a run."""
    as_it_comes = (
        patch.object(compute, "keep_memory") if GIVEN_BACK in os.environ else nullcontext()
    )
    given = Recipe.load(recipe, [f"compute.threads={threads}"])
    with as_it_comes, prepared(given, load_splits(given.data)) as run:
        part = next(each for each in parts_of(run) if each.name == name)
        for _ in range(WARM_UP):
            part.call()
        return part.images / seconds_of(part.call, wall_clock(run.context.fabric), seconds)


def command(given: argparse.Namespace, threads: int, seconds: float) -> list[str]:
    """Returns the command line of a process that prints its `rate`."""
    one = ["--part", given.part, "--threads", str(threads), "--seconds", str(seconds), "--one"]
    module = [sys.executable, "-W", "ignore", "-m", "benchmarks.environment"]
    return [*module, str(given.recipe), *one]


def measured(given: argparse.Namespace, threads: int, setting: Mapping[str, str]) -> float:
    """Returns the rate in a process with that environment."""
    asked = command(given, threads, given.seconds)
    done = subprocess.run(asked, env=os.environ | setting, check=True, stdout=subprocess.PIPE)
    return float(done.stdout.split()[-1])


@contextmanager
def neighbour(given: argparse.Namespace, *, busy: bool) -> Iterator[None]:
    """Keeps a core busy while the block runs, if asked to."""
    if not busy:
        yield
        return
    with subprocess.Popen(command(given, 1, FOREVER), stdout=subprocess.DEVNULL) as other:
        try:
            yield
        finally:
            other.kill()


def main() -> None:
    """Measures, prints the table in Markdown and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--part", default=TEACHING, help='or "flow training", "flow sampling", ...')
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help="measure this process alone")
    parser.add_argument("--out", type=Path, default=Path("runs/environment.json"))
    given = parser.parse_args()
    if given.one:
        print(rate(given.recipe, given.part, given.threads, given.seconds))
        return
    cells = [("1 thread", 1, SETTINGS["as the program sets it"])]
    cells += [
        (f"{given.threads} threads, {name}", given.threads, s) for name, s in SETTINGS.items()
    ]
    rates: dict[str, dict[str, list[float]]] = {name: {} for name, _, _ in cells}
    for _ in range(given.rounds):
        for state, busy in (("alone", False), ("beside a busy core", True)):
            with neighbour(given, busy=busy):
                for name, threads, setting in cells:
                    found = measured(given, threads, setting)
                    rates[name].setdefault(state, []).append(found)
    table = {
        name: {state: statistics.median(each) for state, each in by_state.items()}
        for name, by_state in rates.items()
    }
    print_table(f"{given.part}, images per second", table)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(rates, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
