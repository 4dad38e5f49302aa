"""The audit's costly parts beside other packages: scoring by LiRA, and training of shadows.

    python -m benchmarks.audit_peers pneumoniamnist.npz --out runs/audit_peers.json

Peers are `sacroml` and `adversarial-robustness-toolbox` (ART, which has no LiRA), in the
environment of `benchmarks.peers`. Scoring: the same simulated outputs of a target and its shadows,
online with a variance for each image; only what comes after the networks is timed. sacroml also
tests each image's outputs for normality, which is a part of its scoring. Shadows: the recipe's
teacher on half of the set, in batches of one size, by what each package's helper calls for a
shadow: `fit`. Ours also augments and averages the weights, and takes bf16 where the processor has
it. All take turns in the same run; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.special import softmax
from scipy.stats import spearmanr
from torch import nn

from benchmarks.peers_env.home import Attempts, enter
from benchmarks.shadow_training import Job, half, rate, train_alone
from knowledge_recycling.data.images import to_unit
from knowledge_recycling.models.classifiers import resnet
from knowledge_recycling.privacy.attacks import lira
from knowledge_recycling.privacy.signals import Floats, Signals

OURS = "ours"
MODULE = "benchmarks.audit_peers"
LEARNING_RATE = 0.01


def simulated(images: int, shadows: int, classes: int) -> Signals:
    """Returns signals of a target and shadows that are surer of their members."""
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=images)
    # each image is IN half of the shadows
    members = random.random((shadows + 1, images)).argsort(axis=0) < (shadows + 1) // 2
    logits = random.normal(size=(shadows + 1, 1, images, classes))
    logits += members[:, None, :, None] * np.eye(classes)[labels]
    return Signals(
        labels=labels,
        logits=logits[0],
        shadow_logits=logits[1:],
        shadow_members=members[1:],
    )


def by_us(signals: Signals) -> Floats:
    """Returns our scores [N]."""
    return lira.score(signals, lira.Config(mode="online", variance="per_image"))


@dataclass(frozen=True)
class Told:
    """A shadow whose outputs are known."""

    probabilities: Floats
    """[N,K]"""

    def get_classes(self) -> Any:
        """Returns the classes."""
        return np.arange(self.probabilities.shape[1])

    def predict_proba(self, images: object) -> Floats:
        """Returns the probabilities."""
        del images
        return self.probabilities


def by_sacroml(signals: Signals) -> Floats:
    """Returns sacroml's scores [N]; its shadows' outputs are known already."""
    from sacroml.attacks import likelihood_attack

    members = signals.mask("shadow_members")
    shadows = [Told(softmax(each[0], axis=1)) for each in signals.floats("shadow_logits")]
    target = softmax(signals.floats("logits")[0], axis=1)

    def shadow(folder: str, number: int) -> tuple[Told, Any, None]:
        del folder
        return shadows[number], np.flatnonzero(members[number]), None

    with TemporaryDirectory() as folder:
        attack = likelihood_attack.LIRAAttack(
            folder, write_report=False, n_shadow_models=len(shadows), mode="online-carlini"
        )
        with patch.object(likelihood_attack.utils, "get_shadow_model", shadow):
            outside, inside = attack._get_shadow_signals(target, signals.labels)
        scores, _ = attack._compute_scores(signals.labels, target, outside, inside)
    return np.asarray(scores)[:, 1]


def network(job: Job) -> nn.Module:
    """Returns the recipe's teacher, untrained."""
    return resnet.Classifier(resnet.Config(), job.images.shape, job.images.num_classes)


def train(model: nn.Module, dataloader: Any) -> None:
    """Trains for an epoch: what sacroml's user writes."""
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True)
    model.train()
    for images, labels in dataloader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def our_shadow(job: Job) -> float:
    """Returns the images per second of our training of a shadow."""
    return rate([train_alone(job)])


def sacroml_shadow(job: Job) -> float:
    """Returns the images per second of sacroml's."""
    from sacroml.attacks.model_pytorch import PytorchModel

    shadow = PytorchModel(
        network(job),
        model_module_path=resnet.__name__,  # it makes the networks anew, by their class's name
        model_params={
            "config": resnet.Config(),
            "shape": job.images.shape,
            "num_classes": job.images.num_classes,
        },
        train_module_path=MODULE,
        batch_size=job.training.batch_size,
    )
    return rate_of(shadow.fit, job)


def art_shadow(job: Job) -> float:
    """Returns the images per second of ART's."""
    from art.estimators.classification import PyTorchClassifier

    model = network(job)
    shadow = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True),
        input_shape=job.images.shape,
        nb_classes=job.images.num_classes,
        device_type="gpu" if torch.cuda.is_available() else "cpu",
    )
    return rate_of(
        lambda x, y: shadow.fit(x, y, batch_size=job.training.batch_size, nb_epochs=1), job
    )


def rate_of(fit: Callable[[Any, Any], object], job: Job) -> float:
    """Returns the images per second of an epoch over as many images as the job's steps take."""
    rows = np.arange(job.steps * job.training.batch_size) % len(job.images)
    images = to_unit(job.images.images[rows]).contiguous().numpy()
    start = time.perf_counter()
    fit(images, job.images.labels[rows])
    return len(rows) / (time.perf_counter() - start)


def medians(
    ways: dict[str, Callable[[], float]], rounds: int, attempt: Attempts
) -> dict[str, float]:
    """Returns the median of each way over rounds in which all take turns, after one to warm up."""
    found = {name: way for name, way in ways.items() if attempt(name, way) is not None}
    figures: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, way in found.items():
            figures[name].append(way())
    return {name: statistics.median(each) for name, each in figures.items()}


def seconds(scoring: Callable[[Signals], Floats], signals: Signals) -> float:
    """Returns the seconds of scoring."""
    start = time.perf_counter()
    scoring(signals)
    return time.perf_counter() - start


def table(title: str, figures: dict[str, float], *, more_is_better: bool) -> Iterator[str]:
    """Yields the lines of a table in Markdown."""
    ours = figures.get(OURS, float("nan"))
    yield f"\n| {title} | | ours is faster by |\n|---|---|---|"
    for name, figure in figures.items():
        ratio = ours / figure if more_is_better else figure / ours
        yield f"| {name} | {figure:.4g} | {ratio:.3g} |"


def main() -> None:
    """Measures, prints the tables in Markdown and writes them as JSON."""
    enter(MODULE)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="npz in MedMNIST's form")
    parser.add_argument("--shadows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/audit_peers.json"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(given.threads)
    attempt = Attempts()
    members, training = half(given.images)
    signals = simulated(2 * len(members), given.shadows, members.num_classes)
    scorings = {OURS: by_us, "sacroml": by_sacroml}
    scoring = medians(
        {name: lambda way=way: seconds(way, signals) for name, way in scorings.items()},
        given.rounds,
        attempt,
    )
    job = Job(members, training, 0, given.steps, given.threads)
    trainings = {OURS: our_shadow, "sacroml": sacroml_shadow, "ART": art_shadow}
    shadows = medians(
        {name: lambda way=way: way(job) for name, way in trainings.items()}, given.rounds, attempt
    )
    print(*table("LiRA, seconds", scoring, more_is_better=False), sep="\n")
    agreement = None
    if len(scoring) == len(scorings):
        agreement = float(spearmanr(by_us(signals), by_sacroml(signals)).statistic)
        print(f"\nrank correlation of the scores: {agreement:.4f}")
    print(*table("shadow training, images/s", shadows, more_is_better=True), sep="\n")
    print(attempt.told())
    outcome = {
        "scoring_seconds": scoring,
        "rank_correlation": agreement,
        "failures": attempt.failures,
    }
    outcome |= {"training_images_per_second": shadows, "threads": given.threads}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(outcome, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
