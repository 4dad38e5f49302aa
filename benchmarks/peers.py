"""Our flow generator beside those of other packages: as many minutes, one set, one judge.

    python -m benchmarks.peers recipes/pneumoniamnist.toml --minutes 15 --out runs/peers

Peers are `denoising-diffusion-pytorch`, `torchcfm` and a plain DCGAN (benchmarks/peers_env/). They
are installed in an environment of their own, which borrows the project's packages; all rows are
made there, by one process. Batches, threads, precision and weight average are the same for all. A
peer is the narrowest whose network needs at least our operations per image (a GAN of a usual width
is there too), in the memory layout in which it trains faster.

Speeds are medians over rounds in which all take turns. They say how many images of each kind's
training fit the minutes; then each draws a set as large as the real one, and students like the
recipe's learn it by hard labels: their accuracy on real images is the CAS. `real images` is the
same student on the members themselves. A peer that fails is named; the other rows stay. The same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.limit import clock_of, flops_of, with_generator
from benchmarks.peers_env import FORMATS
from benchmarks.peers_env.home import Attempts, enter
from knowledge_recycling import Recipe, pipeline
from knowledge_recycling.artefacts import (
    Run,
    candidate_files,
    generator_knobs,
    load_source,
    new_classifier,
    new_generator,
)
from knowledge_recycling.config import kind_module
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.models.knobs import Knobs
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.recycling.distillation import Teacher
from knowledge_recycling.recycling.synthesis import draw_set, open_set
from knowledge_recycling.rundir import flattened, output_digest, perform, record_of
from knowledge_recycling.storage import read_json, read_weights, write_json
from knowledge_recycling.timing import Part, generator_parts, seconds_of
from knowledge_recycling.training.batches import Shuffled
from knowledge_recycling.training.classifier import WEIGHTS, Fit, fit_classifier, hard_loss
from knowledge_recycling.training.loop import read_records
from knowledge_recycling.training.validation import predict_logits

OURS = "ours (flow)"
PEERS = {
    "denoising-diffusion-pytorch": {"kind": "benchmarks.peers_env.ddpm"},
    "torchcfm": {"kind": "benchmarks.peers_env.cfm"},
    "DCGAN": {"kind": "benchmarks.peers_env.dcgan"},
    "DCGAN, 64 channels": {"kind": "benchmarks.peers_env.dcgan", "width": 64},
}
"""Those without a width get the narrowest that needs our operations."""
FEW = 2
"""Evaluations of the peers' networks while their speed is measured; it is the same in each."""
REAL = "real images"
GENERATOR = next(stage for stage in pipeline.STAGES if stage.name == "generator")


@dataclass(frozen=True)
class Speed:
    """A generator as it takes part, and how fast it is."""

    generator: dict[str, Any]
    """Its part of the recipe."""
    flops: float
    """Floating-point operations of one evaluation of its network, per image."""
    training: float
    """Images per second."""
    evaluating: float
    """Evaluations of the network per second while sampling, times the images of a batch."""


def work(generator: Any, knobs: Knobs) -> tuple[int, float]:
    """Returns the evaluations per sampled image, and their operations per image."""
    images, calls = 2, []
    hook = generator.network.register_forward_hook(lambda *_: calls.append(1))
    device = next(generator.parameters()).device
    labels = torch.zeros(images, dtype=torch.long, device=device)
    flops = flops_of(lambda: generator.eval().sample(labels, torch.arange(images), knobs))
    hook.remove()
    return len(calls), flops / images / len(calls)


def settings_of(run: Run, evaluations: list[int]) -> list[Knobs]:
    """Returns the knobs with which the run's generator is judged."""
    if run.generator.kind == "flow" or "steps" not in generator_knobs(run):
        return [{}]
    return [{"steps": steps} for steps in evaluations]


def entrants(run: Run, peer: dict[str, Any], flops: float) -> Iterator[Run]:
    """Yields the run with a peer in each memory layout, as wide as said or as `flops` ask for.

    Raises:
        RecipeError: The peer cannot be imported.
    """
    known = kind_module("models.generators", peer["kind"]).WIDTHS
    for width in [peer["width"]] if "width" in peer else known:
        settings = peer | {"width": width}
        if work(new_generator(with_generator(run, settings)), {"steps": 1})[1] >= flops:
            break
    for layout in FORMATS:
        yield with_generator(run, settings | {"layout": layout})


def parts_of(run: Run) -> list[Part]:
    """Returns training and sampling in few steps, each done once."""
    parts = list(generator_parts(run, run.generator.kind, settings_of(run, [FEW])[0]))
    for part in parts:
        part.call()
    return parts


def speeds_of(run: Run, rounds: int, attempt: Attempts) -> dict[str, Speed]:
    """Returns the speed of ours and of each peer that works."""
    flops = work(new_generator(run), {})[1]
    found = {OURS: [run]} | {
        name: attempt(name, lambda peer=peer: list(entrants(run, peer, flops))) or []
        for name, peer in PEERS.items()
    }
    parts = {
        name: attempt(name, lambda runs=runs: [parts_of(each) for each in runs]) or []
        for name, runs in found.items()
    }
    seconds: dict[Any, list[float]] = {}
    for _ in range(rounds):
        for name, of_name in parts.items():
            for place in np.ndindex(len(of_name), 2):
                part = of_name[place[0]][place[1]]
                taken = seconds_of(part.call, clock_of(run.context.fabric), 2.0) / part.images
                seconds.setdefault((name, *place), []).append(taken)
    median = {place: statistics.median(each) for place, each in seconds.items()}
    speeds = {}
    for name, of_name in parts.items():
        if of_name:
            best = min(range(len(of_name)), key=lambda i: median[name, i, 0])
            speeds[name] = speed_of(found[name][best], median[name, best, 0], median[name, best, 1])
    return speeds


def speed_of(run: Run, training: float, sampling: float) -> Speed:
    """Returns the speed from the seconds per image of training and of sampling in few steps."""
    evaluations, flops = work(new_generator(run), settings_of(run, [FEW])[0])
    settings = run.generator.model_dump(exclude_unset=True)
    return Speed(settings, flops, 1 / training, evaluations / sampling)


def rows_of(run: Run, name: str, speed: Speed, given: argparse.Namespace) -> dict[str, Any]:
    """Returns the rows of one generator, trained if it is not: one for each number of steps."""
    images_seen = max(64, round(speed.training * 60 * given.minutes))
    trained = replace(
        with_generator(run, speed.generator, images_seen=images_seen, candidates=1),
        folder=given.out / name.replace(" ", "-"),
    )
    folder = trained.folder / GENERATOR.name
    perform(folder, pipeline.fingerprint(GENERATOR, trained), partial(GENERATOR.work, trained))
    done, rate = record_of(folder) or {}, read_records(folder)[-1]["images_per_second"]
    rows = {}
    for knobs in settings_of(trained, given.evaluations):
        evaluations, _ = work(new_generator(trained), knobs)
        title = f"{name}, {evaluations}" if knobs else name
        rows[title] = {
            "MFLOP per evaluation": speed.flops / 1e6,
            "training images/s": speed.training,
            "evaluations per image": evaluations,
            "sampling images/s": speed.evaluating / evaluations,
            "training minutes": done["seconds"] / 60,
            **cas(run, drawn(trained, knobs), given.students),
            "images/s over the whole training": rate,
            "images seen": images_seen,
            "settings": speed.generator,
        }
    return rows


def drawn(run: Run, knobs: Knobs) -> Path:
    """Returns the folder of a synthetic set as large as the real one, drawn if it is not."""
    folder = run.folder / "-".join(["drawn", *map(str, knobs.values())])
    names = {"generator": output_digest(run.folder / GENERATOR.name), **knobs}
    unasked = Teacher(new_classifier(run, "teacher"), 1.0)  # there is no filter

    def draw(folder: Path) -> None:
        source = load_source(run, unasked, candidate_files(run)[-1], knobs)
        draw_set(source, len(run.members), folder / "set.npy", ("peers", "set"), run.context)

    perform(folder, names, draw)
    return folder


def cas(run: Run, folder: Path, students: int) -> dict[str, float]:
    """Returns the mean CAS in percent of students that learn the set in `folder`."""
    images = open_set(folder / "set.npy", run.members.class_names)
    training = flattened("training", run.recipe.student.training.model_dump(mode="json"))
    made_from = training | {"set": output_digest(folder)}
    found = []
    for seed in range(students):
        place = folder.with_name(f"{folder.name}-student-{seed}")
        perform(place, made_from, partial(judge, run, images, seed))
        found.append(read_json(place / "cas.json"))
    return {f"CAS, {split}": statistics.mean(each[split] for each in found) for split in found[0]}


def judge(run: Run, images: ImageSet, seed: int, folder: Path) -> None:
    """Trains the recipe's student on `images` by hard labels and writes its accuracies."""
    context = replace(run.context, seed=seed)
    student = new_classifier(replace(run, context=context), "student")
    training, device = run.recipe.student.training, context.fabric.device
    fit = Fit(
        name="student",
        config=training,
        loss=hard_loss(),
        batches=Shuffled(images, training.batch_size, seed=seed, name="student", device=device),
        val=run.val,
    )
    fit_classifier(student, fit, folder, context)
    read_weights(folder / WEIGHTS, student)
    accuracies = {
        name: 100 * np.mean(predict_logits(student, each, context.fabric).argmax(1) == each.labels)
        for name, each in (("val", run.val), ("test", run.splits.test))
    }
    write_json(folder / "cas.json", accuracies)


def real(run: Run, given: argparse.Namespace) -> dict[str, Any]:
    """Returns the row of the real images."""

    def copy(folder: Path) -> None:
        np.save(folder / "set.npy", run.members.images)
        np.save(folder / "set.labels.npy", run.members.labels)

    perform(given.out / "real", {"set": run.digests["train"]}, copy)
    return {REAL: cas(run, given.out / "real", given.students)}


def with_ratios(rows: dict[str, dict[str, Any]]) -> None:
    """Adds to each row how many times faster ours is."""
    for row in rows.values():
        for what in ("training", "sampling"):
            if f"{what} images/s" in row and OURS in rows:
                ratio = rows[OURS][f"{what} images/s"] / row[f"{what} images/s"]
                row[f"ours / this, {what}"] = ratio
        if "MFLOP per evaluation" in row and OURS in rows:
            share = rows[OURS]["MFLOP per evaluation"] / row["MFLOP per evaluation"]
            row["the same, training per FLOP"] = row["ours / this, training"] * share


def table(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields the lines of the table in Markdown."""
    hidden = ("images/s over the whole training", "images seen", "settings")
    names = list(dict.fromkeys(name for row in rows.values() for name in row if name not in hidden))
    yield "| generator | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|"
    for title, row in rows.items():
        cells = [f"{row[name]:.4g}" if name in row else "" for name in names]
        yield f"| {title} | " + " | ".join(cells) + " |"


def arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[5, 20], help="of the peers")
    parser.add_argument("--students", type=int, default=2, help="that judge each set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    return parser.parse_args()


def main() -> None:
    """Measures, prints the table in Markdown and writes it as JSON."""
    enter("benchmarks.peers")
    given, attempt = arguments(), Attempts()
    recipe = Recipe.load(given.recipe, given.set)
    splits = load_splits(recipe.data)
    run = pipeline.prepare(recipe, splits, given.out / "run", SilentReporter())
    known = given.out / "speeds.json"
    if not known.exists():
        found = speeds_of(run, given.rounds, attempt)
        write_json(known, {name: asdict(each) for name, each in found.items()})
    speeds = {name: Speed(**each) for name, each in read_json(known).items()}
    for name in PEERS.keys() - speeds.keys() - attempt.failures.keys():
        attempt.failures[name] = f"in an earlier call; without {known} it is tried again"
    rows: dict[str, Any] = {}
    for name, speed in speeds.items():
        rows |= attempt(name, partial(rows_of, run, name, speed, given)) or {}
    rows |= real(run, given)
    with_ratios(rows)
    print(*table(rows), sep="\n")
    print(attempt.told())
    outcome = {"threads": torch.get_num_threads(), "rows": rows, "failures": attempt.failures}
    (given.out / "peers.json").write_text(json.dumps(outcome, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
