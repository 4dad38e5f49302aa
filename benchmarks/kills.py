"""Kills a tiny but complete run at random moments, resumes it, and compares the bits.

    python -m benchmarks.kills --kills 60

The run has every stage; in one of five trials it is audited too (classifiers, 8 shadows). Each
trial starts anew, is killed (SIGKILL) once to three times, either at a random moment or right
before a random file takes its name, and then goes on to its end. All weights, arrays and numbers
must equal those of a run that nobody disturbed; what a clock measured is left out. Processes are
forked from a server that has imported everything and done nothing else (threads and locks of this
one would be copied half), and draw no report: it would take most time.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from knowledge_recycling import Recipe, pipeline
from knowledge_recycling.rundir import BEGUN, DONE
from knowledge_recycling.storage import UNFINISHED
from knowledge_recycling.training import loop

CLOCKED = {
    "cost", "images_per_second", "seal", "seconds", "peak_rss_mib", "stages", "sampling",
}  # fmt: skip
"""Keys that hold what a clock measured, or digests of it."""
FAILED = 2
"""Exit code of a process that an error stopped."""


def tiny_recipe(folder: Path, *, seed: int = 0, shadows: int = 0) -> Recipe:
    """Returns a recipe with every stage that runs in seconds, and writes its images to `folder`."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 48), ("val", 24), ("test", 24)):
        labels = np.arange(size) % 2
        images = rng.normal(128, 30, (size, 8, 8))
        images[labels == 0, ::2] += 60
        images[labels == 1, :, ::2] += 60
        arrays[f"{split}_images"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    np.savez(folder / "tiny.npz", **arrays)
    training = {"images_seen": 96, "batch_size": 16, "snapshots": 2}
    return Recipe.from_dict(
        {
            "seed": seed,
            "data": {"kind": "npz", "path": str(folder / "tiny.npz")},
            "teacher": {"classifier": {"width": 8, "blocks": 1}, "training": training},
            "generator": {"width": 16},
            "generator_training": {"images_seen": 96, "batch_size": 16, "candidates": 2},
            "tuning": {"trials": 2},
            "student": {"training": training, "synthesis": {"period": 2}},
            "evaluation": {"resamples": 100, "quality_images": 50, "grid_images": 2},
            "audit": {"shadows": shadows, "mode": "classifier", "queries": 1},
            "compute": {"accelerator": "cpu", "precision": "32-true", "threads": 1},
        }
    )


def at_work(recipe: Recipe, out: Path, prepare: Callable[[], None] | None = None) -> BaseProcess:
    """Returns a process that runs the recipe, once `prepare` has been called in it.

    It ends with 0, or with `FAILED` and leaves word of it for `last_words`.
    """
    _words(out).unlink(missing_ok=True)  # of a process before it
    context = get_context("forkserver")
    context.set_forkserver_preload([pipeline.__name__])
    process = context.Process(target=_work, args=(recipe, out, prepare))
    process.start()
    return process


def _work(recipe: Recipe, out: Path, prepare: Callable[[], None] | None) -> None:
    """The life of the process."""
    try:
        if prepare:
            prepare()
        save_states_often()
        pipeline.write_report = lambda _: None  # type: ignore[assignment]
        pipeline.run(recipe, out)
    except BaseException:
        _words(out).write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(FAILED)


def last_words(out: Path) -> str:
    """Returns why a process that worked on `out` failed, as far as it could say."""
    file = _words(out)
    return file.read_text(encoding="utf-8") if file.exists() else "it said nothing"


def _words(out: Path) -> Path:
    return out.with_suffix(".failed")


def save_states_often() -> None:
    """Lets the training loop believe that a minute has passed after some milliseconds."""
    clock = SimpleNamespace(monotonic=lambda: 2000 * time.monotonic())
    loop.time = clock  # type: ignore[attr-defined]


def before_each_write(act: Callable[[], None]) -> None:
    """Has this process call `act` whenever a file is written but has no name yet."""
    replace = Path.replace

    def acting(self: Path, target: Path) -> Path:
        act()
        return replace(self, target)

    Path.replace = acting  # type: ignore[method-assign, assignment]


def die_before_write(number: int) -> None:
    """Has this process die before its file `number`, from 0, takes its name."""
    count = iter(range(number))

    def die_in_time() -> None:
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    before_each_write(die_in_time)


def count_writes(counter: Path) -> None:
    """Has this process add a letter to the file `counter` for each file that it writes."""

    def add() -> None:
        with counter.open("a") as file:
            file.write(".")

    before_each_write(add)


def ended(process: BaseProcess) -> int:
    """Returns the exit code of a process, negative if a signal ended it."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@dataclass
class Reference:
    """The undisturbed run."""

    recipe: Recipe
    folder: Path
    seconds: float
    num_writes: int


def undisturbed(recipe: Recipe, out: Path) -> Reference:
    """Runs the recipe to its end.

    Raises:
        SystemExit: It failed.
    """
    counter, start = out.with_suffix(".writes"), time.monotonic()
    code = ended(at_work(recipe, out, partial(count_writes, counter)))
    if code:
        raise SystemExit(f"the undisturbed run ended with {code}: {last_words(out)}")
    return Reference(recipe, out, time.monotonic() - start, counter.stat().st_size)


@dataclass
class Tally:
    """What was done and what came of it."""

    kills: int = 0
    trials: int = 0
    in_stage: collections.Counter[str] = field(default_factory=collections.Counter)
    """Kills by the stage that was at work."""
    unfinished_files: int = 0
    """Kills that left a file without its name behind."""
    states: int = 0
    """Kills that left a state to resume a training from."""
    different: list[str] = field(default_factory=list)
    """What differed from the undisturbed run, by trial."""


def disturb(reference: Reference, out: Path, dice: random.Random, tally: Tally) -> None:
    """Kills one run once to three times, lets it end, and compares."""
    recipe = reference.recipe
    tally.trials += 1
    for _ in range(dice.choice((1, 1, 2, 3))):
        if dice.random() < 0.5:
            last = dice.randrange(reference.num_writes)
            process = at_work(recipe, out, partial(die_before_write, last))
        else:
            process = at_work(recipe, out)
            time.sleep(dice.random() * reference.seconds)
            process.kill()
        if ended(process) != -signal.SIGKILL:
            break  # it was faster
        note(out, tally)
    code = ended(at_work(recipe, out))
    if code:
        said = f"resuming ended with {code}: {last_words(out)}"
        tally.different.append(f"trial {tally.trials}: {said}")
    else:
        differences = compared(out, reference.folder)
        tally.different += [f"trial {tally.trials}: {each}" for each in differences]


def note(out: Path, tally: Tally) -> None:
    """Adds to the tally what a kill left in the run folder."""
    tally.kills += 1
    stages = [name for name in pipeline.STAGE_NAMES if (out / name / BEGUN).exists()]
    done = [name for name in pipeline.STAGE_NAMES if (out / name / DONE).exists()]
    tally.in_stage[stages[0] if stages else f"after {done[-1]}" if done else "start"] += 1
    tally.unfinished_files += any(out.rglob(f".*{UNFINISHED}"))
    tally.states += any(out.rglob("state.safetensors"))


def compared(out: Path, expected: Path) -> list[str]:
    """Returns what differs between two runs in weights, arrays and numbers; empty: nothing."""
    found = {
        path.relative_to(folder)
        for folder in (out, expected)
        for pattern in ("*.safetensors", "*.npz")
        for path in folder.rglob(pattern)
    }
    different = [
        str(name) for name in sorted(found) if not same_arrays(out / name, expected / name)
    ]
    return different + [
        f"{name}: {key}"
        for name in ("result.json", "evaluation/evaluation.json", "candidates/candidates.json")
        for key in differing(numbers(out / name), numbers(expected / name))
    ]


def same_arrays(one: Path, other: Path) -> bool:
    """Returns whether two files are equal; of archives, whose entries carry dates, the arrays."""
    if not (one.exists() and other.exists()):
        return False
    if one.suffix != ".npz":
        return one.read_bytes() == other.read_bytes()
    with np.load(one, allow_pickle=False) as left, np.load(other, allow_pickle=False) as right:
        if left.files != right.files:
            return False
        return all(left[name].tobytes() == right[name].tobytes() for name in left.files)


def numbers(path: Path) -> Any:
    """Returns the content of a JSON file without what a clock measured."""
    return without_clock(json.loads(path.read_text(encoding="utf-8")))


def without_clock(node: Any) -> Any:
    """Returns nested values without the keys of `CLOCKED`."""
    if isinstance(node, dict):
        return {key: without_clock(value) for key, value in node.items() if key not in CLOCKED}
    return [without_clock(each) for each in node] if isinstance(node, list) else node


def differing(one: Any, other: Any) -> list[str]:
    """Returns the keys under which two JSON values differ."""
    if not isinstance(one, dict):
        return [] if one == other else ["all"]
    return [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]


def main() -> None:
    """Runs the trials and prints what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice, tally = random.Random(given.seed), Tally()  # noqa: S311  (no secret)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        references = [
            undisturbed(tiny_recipe(folder, shadows=shadows), folder / f"reference-{shadows}")
            for shadows in (0, 8)
        ]
        for each in references:
            print(f"undisturbed: {each.seconds:.1f} s, {each.num_writes} files written", flush=True)
        while tally.kills < given.kills:
            disturb(references[tally.trials % 5 == 4], folder / "run", dice, tally)
            shutil.rmtree(folder / "run")
            print(f"{tally.kills} kills, {len(tally.different)} differences", flush=True)
    print(f"{tally.kills} kills in {tally.trials} runs; at work: {dict(tally.in_stage)}")
    print(f"{tally.unfinished_files} left an unfinished file, {tally.states} a state of a training")
    print("\n".join(tally.different) or "all runs equal the undisturbed one bit for bit")
    raise SystemExit(bool(tally.different))


if __name__ == "__main__":
    main()
