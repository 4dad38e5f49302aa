"""How near to the machine's limit is each part of a run?

    python -m benchmarks.limit recipes/pneumoniamnist.toml --out runs/limit.json

The limit is the best rate of convolutions (3x3, channels-last, several widths and sizes) and of
matrix products, measured here in the same run, forward only, in fp32 and, where it is not emulated,
bf16. Each part then works as in a run with the recipe's derived settings: floating-point operations
per image are counted by torch (2 per multiplication and addition), seconds are medians over rounds
in which all parts take turns. The share is the achieved rate over the best convolution rate in the
precision of the run.
Runs on a GPU unchanged; there it waits for the device before it reads the clock. With one thread
on a CPU the clock is that of the process, so that busy neighbours count little.

Then what GKD costs beside plain training of the same network, regenerated every epoch, against
what the operations let expect: 1.15 (1 + (evaluations F_generator + F_teacher) / (3 F_student)).
With `--compile`, classifiers and flow compiled by torch as well, and after how many images that has
paid for the compiling.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from knowledge_recycling import Recipe, pipeline
from knowledge_recycling.artefacts import Run
from knowledge_recycling.compute import has_fast_bf16, place
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.timing import (
    GKD,
    LABELLING,
    TEACHING,
    Part,
    classifier_parts,
    generator_parts,
    prepared,
    seconds_of,
    wall_clock,
)

CONVOLUTIONS = ((32, 28), (64, 28), (128, 14), (256, 14), (256, 7))
"""Channels and side of the images of batches of 64."""
MATRICES = (512, 1024, 2048)
KINDS = ("flow", "biggan", "r3gan")
LEAST = 0.2
"""Seconds of calls behind a time."""


def clock_of(fabric: Fabric) -> Callable[[], float]:
    """Returns the clock: the process's own, if it has one thread on a CPU."""
    alone = fabric.device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else wall_clock(fabric)


class FlopCounter(TorchDispatchMode):
    """Adds up the floating-point operations by torch's own formulas.

    torch's `FlopCounterMode` follows modules too, which fails where gradients are penalised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts it."""
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=result))
        return result


def flops_of(call: Callable[[], object]) -> int:
    """Returns the floating-point operations of a call, 2 per multiplication and addition."""
    with FlopCounter() as counter:
        call()
    return counter.flops


def limits(fabric: Fabric) -> dict[str, float]:
    """Returns the best rates in FLOP/s by kind of work and precision; bf16 is not emulated."""
    best: dict[str, float] = {}
    precisions = {"fp32": torch.float32}
    if has_fast_bf16(on_gpu=fabric.device.type != "cpu"):
        precisions["bf16"] = torch.bfloat16
    for name, dtype in precisions.items():
        for kind, calls in (("convolution", convolutions), ("matrix", matrices)):
            rates = [
                flops_of(call) / min(seconds_of(call, clock_of(fabric), LEAST) for _ in range(3))
                for call in calls(dtype, fabric)
            ]
            best[f"{kind}, {name}"] = max(rates)
    return best


def convolutions(dtype: torch.dtype, fabric: Fabric) -> Iterator[Callable[[], Tensor]]:
    """Yields the convolutions that stand for the limit."""
    for channels, side in CONVOLUTIONS:
        kernel = place(nn.Conv2d(channels, channels, 3, padding=1, bias=False), fabric).to(dtype)
        images = torch.randn(64, channels, side, side, dtype=dtype, device=fabric.device)
        images = images.contiguous(memory_format=torch.channels_last)
        kernel.requires_grad_(requires_grad=False)
        yield lambda kernel=kernel, images=images: kernel(images)


def matrices(dtype: torch.dtype, fabric: Fabric) -> Iterator[Callable[[], Tensor]]:
    """Yields the matrix products."""
    for size in MATRICES:
        a = torch.randn(size, size, dtype=dtype, device=fabric.device)
        yield lambda a=a: a @ a


COMPILED = ", compiled"
SAMPLING = "flow sampling"


def parts_of(run: Run, *, compiled: bool = False) -> Iterator[Part]:
    """Yields the pieces of work of a run, with the recipe's derived settings.

    Compiled are classifiers and flow: torch cannot where gradients are penalised.
    """
    suffix = COMPILED if compiled else ""
    run = replace(run, context=replace(run.context, compile=compiled))
    for each in classifier_parts(run):
        yield replace(each, name=each.name + suffix)
    for kind in KINDS[:1] if compiled else KINDS:
        of_kind = with_generator(run, {"kind": kind})
        for each in generator_parts(of_kind, kind):
            yield replace(each, name=each.name + suffix)


def with_generator(run: Run, generator: dict[str, Any], **training: int) -> Run:
    """Returns the run with another generator and, if given, other settings of its training."""
    values = run.recipe.model_dump(exclude_unset=True)
    values["generator"] = generator
    values["generator_training"] |= training
    facts = pipeline.facts(run.splits, (), on_gpu=run.context.fabric.device.type != "cpu")
    return replace(run, recipe=Recipe.from_dict(values).completed(facts))


def measured(parts: list[Part], rounds: int, fabric: Fabric) -> dict[str, float]:
    """Returns the seconds per image by part, medians over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {each.name: [] for each in parts}
    for _ in range(rounds):
        for each in parts:
            seconds[each.name].append(seconds_of(each.call, clock_of(fabric), LEAST) / each.images)
    return {name: statistics.median(each) for name, each in seconds.items()}


def overhead(seconds: dict[str, float], flops: dict[str, float]) -> dict[str, float]:
    """Returns what an image of GKD costs beside one of plain training, and what it may."""
    student = flops[TEACHING] / 3
    expected = 1 + (flops[SAMPLING] + flops[LABELLING]) / (3 * student)
    return {
        "GKD over plain training": (seconds[GKD] + seconds[SAMPLING]) / seconds[TEACHING],
        "allowed": 1.15 * expected,
    }


def pay_back(seconds: dict[str, float], first: dict[str, float]) -> dict[str, dict[str, float]]:
    """Returns what compiling a part took, what it gained, and the images after which it pays."""
    table = {}
    for name, took in first.items():
        plain, compiled = seconds[name.removesuffix(COMPILED)], seconds[name]
        saved = plain - compiled
        table[name] = {
            "seconds": took,
            "gain": plain / compiled - 1,
            "images": took / saved if saved > 0 else math.inf,
        }
    return table


def main() -> None:
    """Measures, prints the tables in Markdown and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/limit.json"))
    given = parser.parse_args()
    recipe = Recipe.load(given.recipe, given.set)
    with prepared(recipe, load_splits(recipe.data)) as run:
        fabric = run.context.fabric
        best = limits(fabric)
        parts = list(parts_of(run))
        flops = {each.name: flops_of(each.call) / each.images for each in parts}
        first = {}
        for each in parts_of(run, compiled=True) if given.compile else ():
            start = time.perf_counter()
            each.call()
            first[each.name] = time.perf_counter() - start
            parts.append(each)
        seconds = measured(parts, given.rounds, fabric)
    precision = "bf16" if "bf16" in fabric._precision.precision else "fp32"
    limit = best[f"convolution, {precision}"]
    table = {
        name: {
            "MFLOP per image": work / 1e6,
            "images/s": 1 / seconds[name],
            "GFLOP/s": work / seconds[name] / 1e9,
            "share of the limit": work / seconds[name] / limit,
        }
        for name, work in flops.items()
    }
    ratios, paid = overhead(seconds, flops), pay_back(seconds, first)
    print(f"{torch.get_num_threads()} threads, {fabric.device.type}, {precision}\n")
    print_table("limit", {name: {"GFLOP/s": rate / 1e9} for name, rate in best.items()})
    print_table("part", table)
    print_table("ratio", {name: {"value": value} for name, value in ratios.items()})
    if paid:
        print_table("compiled", paid)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    found = {"limits": best, "parts": table, "overhead": ratios, "compiled": paid}
    given.out.write_text(json.dumps(found, indent=2), encoding="utf-8")


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Prints rows of the same columns in Markdown."""
    columns = list(next(iter(rows.values())))
    print(f"| {title} | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{each:.3g}" for each in row.values()) + " |")
    print()


if __name__ == "__main__":
    main()
