"""Can the audit find members where it must? Shadows of an overfitted classifier, LiRA on each.

    python -m benchmarks.audit_power bloodmnist.npz --out runs/power.json

Every shadow learns half of 2,000 images by heart, without augmentation, and is once the target of
the others. Prints the attacks' areas and true positive rates with their intervals, and how many
images per second training all at once sees against one by one: in turns, in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from knowledge_recycling.compute import ComputeConfig, descend, make_fabric
from knowledge_recycling.data.images import to_unit
from knowledge_recycling.models.build import build_classifier
from knowledge_recycling.models.classifiers import resnet
from knowledge_recycling.privacy.attacks import lira, rmia, threshold, trained
from knowledge_recycling.privacy.many import (
    ManyTraining,
    Pool,
    Stack,
    half_memberships,
    logits_of_many,
    train_many,
)
from knowledge_recycling.privacy.metrics import Aggregate, aggregate, attack_each, left_out_targets
from knowledge_recycling.privacy.signals import Signals
from knowledge_recycling.randomness import numpy_rng

IMAGES, POPULATION = 2000, 500
ROUNDS = 5
"""Timings of either way, in turns; their median counts."""

ATTACKS: dict[str, Callable[[Signals], Any]] = {
    "LiRA online": lambda seen: lira.score(seen, lira.Config()),
    "LiRA online, variance per image": lambda seen: lira.score(
        seen, lira.Config(variance="per_image")
    ),
    "LiRA offline": lambda seen: lira.score(seen, lira.Config(mode="offline")),
    "RMIA online": lambda seen: rmia.score(seen, rmia.Config()),
    "RMIA offline": lambda seen: rmia.score(seen, rmia.Config(mode="offline")),
    "trained": lambda seen: trained.score(seen, trained.Config()),
    "loss": lambda seen: threshold.score(seen, threshold.Config()),
}


class Perceptron(nn.Module):
    """Images [N,C,28,28] to logits [N,K] by two hidden layers that see 7 by 7 pixels."""

    def __init__(self, channels: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(49 * channels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        return self.head(self.layers(functional.avg_pool2d(images, 4).flatten(1)))


def networks(name: str, count: int, num_classes: int, fabric: Fabric) -> list[nn.Module]:
    """Returns untrained shadows."""
    if name == "resnet":
        config, shape = resnet.Config(width=8, blocks=1), (3, 28, 28)
        build = {"fabric": fabric, "seed": 0}
        return [
            build_classifier(config, shape, num_classes, name=f"shadow {s}", **build)
            for s in range(count)
        ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [Perceptron(3, num_classes).to(fabric.device) for _ in range(count)]


def read(path: Path, fabric: Fabric) -> tuple[Tensor, Tensor]:
    """Returns the pool's images [N,C,H,W] and labels [N]: the first of the file, shuffled."""
    with np.load(path, allow_pickle=False) as file:
        chosen = numpy_rng(0, "pool").permutation(len(file["train_labels"]))[: IMAGES + POPULATION]
        images, labels = file["train_images"][chosen], file["train_labels"][chosen]
    unit = to_unit(images.transpose(0, 3, 1, 2)).to(fabric.device)
    return unit, torch.from_numpy(labels.astype(np.int64).ravel()).to(fabric.device)


def steps_at_once(stack: Stack, images: Tensor, labels: Tensor, count: int) -> None:
    """Trains all for `count` steps on [S,B,C,H,W] and [S,B]."""
    optimizer = torch.optim.SGD(stack.parameters.values(), 1e-3, momentum=0.9, nesterov=True)
    for _ in range(count):
        logits = stack(images, train=True).float()
        descend(functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), optimizer)


def steps_alone(network: nn.Module, images: Tensor, labels: Tensor, count: int) -> None:
    """Trains one for `count` steps on [B,C,H,W] and [B]."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, nesterov=True)
    for _ in range(count):
        descend(functional.cross_entropy(network(images).float(), labels), optimizer)


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Returns how long `work` takes."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def speeds(shadows: Sequence[nn.Module], pool: Pool, batch_size: int) -> dict[str, float]:
    """Returns images per second of both ways, medians of `ROUNDS` in turns after a warm-up."""
    rows = torch.arange(len(shadows) * batch_size, device=pool.labels.device) % IMAGES
    rows = rows.view(len(shadows), batch_size)
    images, labels = pool.images[rows], pool.labels[rows]
    stack, single = Stack(shadows), shadows[0].train()
    one = images[0].contiguous(memory_format=torch.channels_last)
    taken: dict[str, list[float]] = {"at once": [], "one by one": []}
    for _ in range(ROUNDS + 1):
        at_once = seconds(lambda: steps_at_once(stack, images, labels, 3), rows.device)
        alone = seconds(lambda: steps_alone(single, one, labels[0], 30), rows.device)
        taken["at once"].append(3 * rows.numel() / at_once)
        taken["one by one"].append(30 * batch_size / alone)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def accuracies(logits: Any, labels: Any, members: Any) -> tuple[float, float]:
    """Returns the mean accuracy on members and on other images."""
    right = logits[:, 0].argmax(axis=-1) == labels
    return float(right[members].mean()), float(right[~members].mean())


def told(name: str, found: Aggregate) -> str:
    """Returns a row of the table."""
    parts = [f"{found.auc.value:.3f} [{found.auc.low:.3f}, {found.auc.high:.3f}]"]
    for _, rate in found.detections:
        parts.append(
            f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]" if rate else "not resolvable"
        )
    return f"| {name} | " + " | ".join(parts) + " |"


def main() -> None:
    """Trains, attacks, prints the tables in Markdown and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="npz in MedMNIST's form, 28 by 28, RGB")
    parser.add_argument("--network", choices=("perceptron", "resnet"), default="perceptron")
    parser.add_argument("--shadows", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/audit_power.json"))
    given = parser.parse_args()
    fabric = make_fabric(ComputeConfig(precision="32-true", threads=1))
    images, labels = read(given.images, fabric)
    members = half_memberships(given.shadows, IMAGES, numpy_rng(0, "members"))
    members = np.concatenate([members, np.zeros((given.shadows, POPULATION), np.bool_)], axis=1)
    pool = Pool(images, labels, members)
    config = ManyTraining(epochs=given.epochs, learning_rate=given.learning_rate)
    shadows = networks(given.network, given.shadows, int(labels.max()) + 1, fabric)
    figures: dict[str, Any] = {"images_per_second": speeds(shadows, pool, config.batch_size)}
    print(figures["images_per_second"])
    if not given.speed_only:
        figures |= attacked(shadows, pool, config, given.shadows)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2, default=lambda array: array.tolist())
    given.out.write_text(text, encoding="utf-8")


def attacked(
    shadows: Sequence[nn.Module], pool: Pool, config: ManyTraining, count: int
) -> dict[str, Any]:
    """Returns accuracies, seconds and what each attack finds over all targets."""
    start = time.perf_counter()
    stack = train_many(shadows, pool, config, seed=0)
    logits = logits_of_many(stack, [pool.images])
    taken = time.perf_counter() - start
    labels, population = pool.labels.cpu().numpy(), np.arange(len(pool.labels)) >= IMAGES
    inside, outside = accuracies(logits, labels, pool.members)
    print(f"{count} shadows in {taken:.0f} s; accuracy {inside:.4f} IN, {outside:.4f} OUT")
    print("| attack | AUC | TPR at 10 % FPR | at 1 % | at 0.1 % |\n|---|---|---|---|---|")
    found = {}
    for name, attack in ATTACKS.items():
        targets = left_out_targets(logits, pool.members, labels, population)
        found[name] = aggregate(attack_each(targets, attack))
        print(told(name, found[name]), flush=True)
    return {
        "seconds": taken,
        "accuracy": {"IN": inside, "OUT": outside},
        "attacks": {name: asdict(each) for name, each in found.items()},
    }


if __name__ == "__main__":
    main()
