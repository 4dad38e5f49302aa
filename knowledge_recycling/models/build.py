"""From a `Config` to a network on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric

from knowledge_recycling.compute import ModuleT, place
from knowledge_recycling.config import PluginConfig, kind_module
from knowledge_recycling.models.contracts import Classifier, Generator
from knowledge_recycling.randomness import named_seed

Shape = tuple[int, int, int]


def build_classifier(
    config: PluginConfig, shape: Shape, num_classes: int, *, fabric: Fabric, seed: int, name: str
) -> Classifier:
    """Returns a classifier of images of `shape` (C,H,W), its weights a function of (seed, name)."""
    build = kind_module("models.classifiers", config.kind).Classifier
    with initial_weights(seed, name):
        classifier: Classifier = build(config, shape, num_classes)
    return place(classifier, fabric)


def build_generator(
    config: PluginConfig, shape: Shape, num_classes: int, *, fabric: Fabric, seed: int, name: str
) -> Generator:
    """Returns a generator of images of `shape` (C,H,W), its weights a function of (seed, name)."""
    build = kind_module("models.generators", config.kind).Generator
    with initial_weights(seed, name):
        generator: Generator = build(config, shape, num_classes)
    return place(generator, fabric)


def build_objective(
    generator: Generator, config: PluginConfig, *, fabric: Fabric, seed: int, name: str
) -> Any:
    """Returns what `generator` minimises; weights of its own are a function of (seed, name)."""
    build = kind_module("models.generators", config.kind).Objective
    with initial_weights(seed, f"{name}: objective"):
        return build(generator, config, fabric)


@contextmanager
def initial_weights(seed: int, name: str) -> Iterator[None]:
    """Makes networks built within get the initial weights of (seed, name)."""
    # torch draws initial weights from its global generator: it is set, and put back after
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, name, "weights"))
        yield


def frozen(module: ModuleT) -> ModuleT:
    """Returns `module` in eval mode and without gradients."""
    return module.eval().requires_grad_(requires_grad=False)
