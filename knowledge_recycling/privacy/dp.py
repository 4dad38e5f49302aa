"""Classifiers trained with DP-SGD (Abadi 2016, arXiv 1607.00133): what a guarantee costs.

Opacus gives gradients per image, noise and accountant; Poisson batches are drawn here, so that all
randomness has names. The averaged weights are returned: averaging is post-processing, free of
charge (De 2022, arXiv 2204.13650, section 3).

Shapes: N images, C,H,W, K classes.
"""

from __future__ import annotations

import importlib
import math
import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import nn
from torch.nn import functional

from knowledge_recycling.config import DERIVED, Config, Facts, PluginConfig, plugin
from knowledge_recycling.context import Context
from knowledge_recycling.data.augment import AugmentationName, augment
from knowledge_recycling.data.images import ImageSet, to_unit
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.models.averaging import power_average
from knowledge_recycling.models.build import build_classifier, frozen
from knowledge_recycling.models.contracts import Classifier
from knowledge_recycling.randomness import numpy_rng, rng

CHANNELS_PER_GROUP = 8
LARGEST_BATCH = 256
MIN_NOISE = 0.3
"""Quieter noise hardly hides anything, and the accountant becomes slow."""


class DPConfig(Config):
    """Classifiers trained with DP-SGD on the real images, one per epsilon."""

    epsilons: tuple[Annotated[float, Field(gt=0)], ...] = (8.0, 64.0)
    """The guarantees, each a classifier; an empty list trains none. Needs the extra `dp`."""
    delta: float = Field(DERIVED, gt=0, lt=1)
    """Chance that the guarantee may fail; unset: one in ten times the real images."""
    classifier: Annotated[
        PluginConfig, *plugin("models.classifiers", "audit.yardsticks.dp.classifier", "resnet")
    ] = Field(default_factory=lambda: {"width": 8}, validate_default=True)
    """The network; batch normalisation, which mixes images, becomes group normalisation. Smaller
    than the teacher's by default: noise grows with the number of weights."""
    epochs: PositiveInt = DERIVED
    """Times that each image is expected to be drawn; unset: 470 over the square root of the real
    images, since other trainings grow with that root too."""
    learning_rate: float = Field(0.25, gt=0)
    """Of SGD without momentum."""
    max_norm: float = Field(1.0, gt=0)
    """Gradients of single images are clipped to this norm."""
    augment: tuple[AugmentationName, ...] = ()
    """Augmentations by name."""

    def derived(self, facts: Facts) -> dict[str, Any]:
        """Derives delta and length from the number of images."""
        return {
            "delta": 1 / (10 * facts.num_train),
            "epochs": max(1, round(470 / math.sqrt(facts.num_train))),
        }


@dataclass(frozen=True)
class Private:
    """A classifier with a guarantee about its members, one image more or less."""

    classifier: Classifier
    epsilon: float
    """As the accountant (Renyi) says after the last step."""
    delta: float
    noise_multiplier: float
    """Standard deviation of the noise over `max_norm`."""


def check_installed(config: DPConfig) -> None:
    """Checks that Opacus is there if any classifier asks for it.

    Raises:
        RecipeError: It is not.
    """
    if not config.epsilons:
        return
    try:
        importlib.import_module("opacus")
    except ImportError as error:
        raise RecipeError(
            "DP-SGD needs Opacus, which is not installed",
            where="audit.yardsticks.dp.epsilons",
            got=error,
            next_step="pip install 'knowledge-recycling[dp]', or set the key to []",
        ) from error


def train_private(
    members: ImageSet, config: DPConfig, epsilon: float, context: Context, name: str
) -> Private:
    """Returns a classifier of the members that is (epsilon, delta)-private.

    Noise is as loud as `epsilon` asks for after all steps. The random generator is not
    cryptographic: the guarantee is a yardstick here, not a promise to anybody.

    Raises:
        RecipeError: Opacus is missing, or the network cannot be trained so.
    """
    check_installed(config)
    share = min(0.5, LARGEST_BATCH / len(members))
    steps = max(1, round(config.epochs / share))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Opacus about hooks and the accountant's orders
        noise = _noise_for(epsilon, config.delta, share, steps)
        classifier = _new(members, config, context, name)
        trained = _train(classifier, members, config, noise, (share, steps), context, name)
        spent = _spent(noise, config.delta, share, steps)
    return Private(trained, spent, config.delta, noise)


def _new(members: ImageSet, config: DPConfig, context: Context, name: str) -> Classifier:
    from opacus.validators import ModuleValidator

    classifier = build_classifier(
        config.classifier,
        members.shape,
        members.num_classes,
        fabric=context.fabric,
        seed=context.seed,
        name=name,
    )
    grouped(classifier)
    classifier.to(memory_format=torch.contiguous_format)  # as Opacus' gradients are
    for error in ModuleValidator.validate(classifier, strict=False):
        raise RecipeError(
            "the network cannot be trained with DP-SGD",
            where="audit.yardsticks.dp.classifier",
            got=error,
            next_step="name another network, or set audit.yardsticks.dp.epsilons to []",
        )
    return classifier


def grouped(network: nn.Module) -> None:
    """Replaces each batch normalisation in `network` by one of groups of channels of an image."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            channels = module.num_features
            groups = channels // CHANNELS_PER_GROUP if channels % CHANNELS_PER_GROUP == 0 else 1
            norm = nn.GroupNorm(groups, channels).to(module.weight.device)
            owner, _, last = name.rpartition(".")
            setattr(network.get_submodule(owner), last, norm)


def _train(
    classifier: Classifier,
    members: ImageSet,
    config: DPConfig,
    noise: float,
    plan: tuple[float, int],
    context: Context,
    name: str,
) -> Classifier:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    share, steps = plan
    device = context.fabric.device
    average = power_average(classifier)
    seen = GradSampleModule(classifier)
    optimizer = DPOptimizer(
        torch.optim.SGD(seen.parameters(), config.learning_rate),
        noise_multiplier=noise,
        max_grad_norm=config.max_norm,
        expected_batch_size=max(1, round(share * len(members))),
        generator=rng(context.seed, name, "noise", device=device),
    )
    with context.reporter.task(name, steps) as advance:
        for step in range(steps):
            drawn = numpy_rng(context.seed, name, "batch", step).random(len(members)) < share
            if not drawn.any():  # adding noise alone would be exact; so rare that it is left out
                continue
            images = to_unit(members.images[drawn]).to(device)
            images = augment(images, config.augment, rng(context.seed, name, "augment", step))
            labels = torch.from_numpy(members.labels[drawn]).to(device)
            optimizer.zero_grad()
            functional.cross_entropy(seen(images.contiguous()), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            average.update_parameters(classifier)
            advance(step + 1)
    seen.remove_hooks()
    trained: Any = average.module
    return frozen(trained)  # type: ignore[no-any-return]


def _noise_for(epsilon: float, delta: float, share: float, steps: int) -> float:
    """Returns the quietest noise for `epsilon`, within 1 %; never below `MIN_NOISE`."""
    low = high = MIN_NOISE
    while _spent(high, delta, share, steps) > epsilon:
        low, high = high, 2 * high
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        enough = _spent(middle, delta, share, steps) <= epsilon
        low, high = (low, middle) if enough else (middle, high)
    return high


def _spent(noise: float, delta: float, share: float, steps: int) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise, share, steps)]
    return float(accountant.get_epsilon(delta))
