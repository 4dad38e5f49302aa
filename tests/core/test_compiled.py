"""Networks that torch compiles compute what they compute as they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from lightning_fabric import Fabric
from torch._dynamo.utils import counters

from knowledge_recycling.compute import ComputeConfig, make_fabric
from knowledge_recycling.config import Facts, kind_module
from knowledge_recycling.context import Context
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.models.build import build_classifier, build_generator, frozen
from knowledge_recycling.progress import SilentReporter

SHAPE = (1, 8, 8)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")


def num_compiled() -> int:
    """Returns how many calls torch has compiled so far."""
    return int(counters["frames"]["ok"])


@pytest.mark.slow
@needs_compiler
def test_a_compiled_classifier_gives_the_same_logits_and_gradients(fabric: Fabric) -> None:
    config = kind_module("models.classifiers", "resnet").Config(width=8, blocks=1)
    images = torch.rand(6, *SHAPE) * 2 - 1
    before, found = num_compiled(), []
    for compiled in (False, True):
        context = Context(fabric, 0, SilentReporter(), compile=compiled)
        network = context.compiled(
            build_classifier(config, SHAPE, 3, fabric=fabric, seed=0, name="t")
        )
        logits = network(images)
        logits.square().sum().backward()  # type: ignore[no-untyped-call]
        found.append([logits, *(each.grad for each in network.parameters())])
        assert (num_compiled() > before) == compiled
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_flow_draws_the_same_images(
    fabric: Fabric, make_facts: Callable[..., Facts]
) -> None:
    given = kind_module("models.generators", "flow").Config(width=8)
    config = given.completed(make_facts(shape=SHAPE, num_classes=2))
    labels, seeds = torch.arange(4) % 2, torch.arange(4)
    before, drawn = num_compiled(), []
    for compiled in (False, True):
        context = Context(fabric, 0, SilentReporter(), compile=compiled)
        generator = build_generator(config, SHAPE, 2, fabric=fabric, seed=0, name="g")
        context.compiled_sampler(generator)
        drawn.append(frozen(generator).sample(labels, seeds, {}))
        assert (num_compiled() > before) == compiled
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-3, atol=1e-3)


def test_without_a_compiler_compiling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(RecipeError, match="no C\\+\\+ compiler") as caught:
        make_fabric(ComputeConfig(accelerator="cpu", compile=True))
    assert caught.value.where == "compute.compile"
