"""Every file of models/generators and models/classifiers keeps the contract of its folder.

Checked on small networks of several image shapes and numbers of classes: shapes, ranges, images
that depend on their own label and seed alone, training that can be stored and goes on identically.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from knowledge_recycling.compute import ComputeConfig, make_fabric
from knowledge_recycling.config import Config, Facts, kind_module, known_kinds
from knowledge_recycling.errors import RecipeError
from knowledge_recycling.models.build import (
    build_classifier,
    build_generator,
    build_objective,
    frozen,
)
from knowledge_recycling.models.knobs import Knob
from knowledge_recycling.randomness import rng
from knowledge_recycling.storage import read_state, write_state

GENERATORS = known_kinds("models.generators")
CLASSIFIERS = known_kinds("models.classifiers")
SMALL: dict[str, dict[str, Any]] = {
    "flow": {"width": 8, "warmup_steps": 1, "learning_rate": 0.01},
    "biggan": {
        "width": 8,
        "latent_size": 8,
        "embedding_size": 8,
        "discriminator_steps": 1,
        "learning_rate": 0.01,
        "discriminator_learning_rate": 0.01,
        "augment": (),
    },
    "r3gan": {"width": 8, "latent_size": 8, "embedding_size": 8, "learning_rate": 0.003},
    "resnet": {"width": 8, "blocks": 1},
    "timm": {"name": "test_resnet"},
}
SHAPES = [((1, 8, 8), 2), ((1, 28, 28), 2), ((3, 28, 28), 5), ((3, 64, 64), 3), ((1, 15, 13), 5)]

shapes = pytest.mark.parametrize(("shape", "num_classes"), SHAPES)
generators = pytest.mark.parametrize("kind", GENERATORS)
classifiers = pytest.mark.parametrize("kind", CLASSIFIERS)
Shape = tuple[int, int, int]
Build = Callable[..., Any]


@pytest.fixture
def classifier(fabric: Fabric) -> Build:
    def build(kind: str, shape: Shape, num_classes: int) -> Any:
        config = kind_module("models.classifiers", kind).Config(**SMALL.get(kind, {}))
        return build_classifier(config, shape, num_classes, fabric=fabric, seed=0, name="t")

    return build


@pytest.fixture
def small_config(make_facts: Callable[..., Facts]) -> Build:
    def config(kind: str, shape: Shape, num_classes: int) -> Config:
        given = kind_module("models.generators", kind).Config(**SMALL.get(kind, {}))
        return given.completed(make_facts(shape=shape, num_classes=num_classes))

    return config


@pytest.fixture
def generator(fabric: Fabric, small_config: Build) -> Build:
    def build(kind: str, shape: Shape, num_classes: int) -> Any:
        config = small_config(kind, shape, num_classes)
        return build_generator(config, shape, num_classes, fabric=fabric, seed=0, name="g")

    return build


@pytest.fixture
def objective(fabric: Fabric, small_config: Build, generator: Build) -> Build:
    def build(kind: str, shape: Shape, num_classes: int) -> Any:
        config = small_config(kind, shape, num_classes)
        network = generator(kind, shape, num_classes)
        return build_objective(network, config, fabric=fabric, seed=0, name="g")

    return build


def teach(objective: Any, shape: Shape, num_classes: int, steps: range) -> list[dict[str, Tensor]]:
    """Shows black images of class 0, lighter ones of higher classes."""
    labels = torch.arange(8) % num_classes
    images = (labels / (num_classes - 1) * 2 - 1)[:, None, None, None].expand(8, *shape)
    return [objective.step(images.clone(), labels, rng(0, "teach", step)) for step in steps]


@pytest.mark.parametrize(
    ("family", "kind"),
    [("models.generators", kind) for kind in GENERATORS]
    + [("models.classifiers", kind) for kind in CLASSIFIERS],
)
def test_the_default_kind_is_the_file_name(family: str, kind: str) -> None:
    module: ModuleType = kind_module(family, kind)
    assert module.Config().kind == kind
    assert module.Config(kind=kind) == module.Config()
    with pytest.raises(ValueError, match="kind"):
        module.Config(kind="another")


@classifiers
@shapes
def test_a_classifier_gives_logits_and_the_features_behind_them(
    classifier: Build, kind: str, shape: Shape, num_classes: int
) -> None:
    network = frozen(classifier(kind, shape, num_classes))
    images = torch.rand(3, *shape) * 2 - 1
    logits, features = network(images), network.features(images)
    assert logits.shape == (3, num_classes)
    assert features.shape == (3, features.shape[1])
    head = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1]
    torch.testing.assert_close(head(features), logits)


@classifiers
def test_a_classifier_sees_each_image_alone(classifier: Build, kind: str) -> None:
    network = frozen(classifier(kind, (1, 8, 8), 3))
    images = torch.rand(4, 1, 8, 8)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, atol=1e-4, rtol=1e-4)


@classifiers
def test_initial_weights_are_a_function_of_seed_and_name(
    fabric: Fabric, classifier: Build, kind: str
) -> None:
    before = torch.get_rng_state()
    first, second = (classifier(kind, (1, 8, 8), 2).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    config = kind_module("models.classifiers", kind).Config(**SMALL.get(kind, {}))
    other = build_classifier(config, (1, 8, 8), 2, fabric=fabric, seed=0, name="u").state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "got"),
    [({"name": "resnett18"}, "did you mean"), ({"options": {"no_such_option": 1}}, "options")],
)
def test_what_timm_does_not_know_is_an_error_of_the_recipe(
    changes: dict[str, Any], got: str
) -> None:
    module = kind_module("models.classifiers", "timm")
    with pytest.raises(RecipeError) as caught:
        module.Classifier(module.Config(**changes), (1, 8, 8), 2)
    assert got in str(caught.value)


@pytest.mark.parametrize(("side", "min_side"), [(8, 32), (49, 64), (55, 64), (64, 32)])
def test_timm_enlarges_the_shorter_side_to_the_pixel(side: int, min_side: int) -> None:
    module = kind_module("models.classifiers", "timm")
    config = module.Config(name="test_resnet", min_side=min_side)
    enlarged = module.Classifier(config, (1, side, 2 * side), 2)._enlarged(
        torch.zeros(1, 1, side, 2 * side)
    )
    assert min(enlarged.shape[2:]) == max(side, min_side)
    assert enlarged.shape[3] == 2 * enlarged.shape[2]


@generators
@shapes
def test_images_have_shape_and_range_and_depend_on_their_own_seed(
    generator: Build, objective: Build, kind: str, shape: Shape, num_classes: int
) -> None:
    learner = objective(kind, shape, num_classes)
    teach(learner, shape, num_classes, range(3))
    network = frozen(learner.averaged())
    labels, seeds = torch.arange(7) % num_classes, torch.arange(7) + 2**61
    images = network.sample(labels, seeds, {})
    assert images.shape == (7, *shape)
    assert images.min() >= -1
    assert images.max() <= 1
    parts = [network.sample(labels[i : i + 2], seeds[i : i + 2], {}) for i in range(0, 7, 2)]
    torch.testing.assert_close(torch.cat(parts), images, atol=1e-4, rtol=0)
    turned = network.sample(labels.flip(0), seeds.flip(0), {}).flip(0)
    torch.testing.assert_close(turned, images, atol=1e-4, rtol=0)
    same_label = network.sample(torch.zeros(5, dtype=torch.long), torch.arange(5), {})
    assert same_label.std(dim=0).max() > 0.01


@generators
def test_sampling_leaves_the_global_generator_alone(generator: Build, kind: str) -> None:
    network = frozen(generator(kind, (1, 8, 8), 2))
    before = torch.get_rng_state()
    network.sample(torch.tensor([0, 1]), torch.tensor([5, 6]), {})
    assert torch.equal(before, torch.get_rng_state())


@generators
def test_losses_of_an_image_do_not_depend_on_the_batch(generator: Build, kind: str) -> None:
    network = frozen(generator(kind, (3, 8, 8), 2))
    if not hasattr(network, "losses"):  # a GAN has none: its discriminator is another network
        return
    images, labels = torch.rand(5, 3, 8, 8) * 2 - 1, torch.tensor([0, 1, 0, 1, 1])
    whole = network.losses(images, labels)
    assert whole.shape == (5,)
    assert (whole > 0).all()
    apart = torch.cat([network.losses(images[i : i + 1], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(apart, whole, rtol=1e-4, atol=1e-5)


@generators
def test_labels_matter_once_something_is_learnt(objective: Build, kind: str) -> None:
    learner = objective(kind, (1, 8, 8), 2)
    losses = teach(learner, (1, 8, 8), 2, range(40))
    assert all(value.isfinite() for loss in losses for value in loss.values())
    assert not any(value.requires_grad for loss in losses for value in loss.values())
    seeds = torch.arange(6)
    network = frozen(learner.averaged())
    dark = network.sample(torch.zeros(6, dtype=torch.long), seeds, {})
    light = network.sample(torch.ones(6, dtype=torch.long), seeds, {})
    assert light.mean() > dark.mean() + 0.5


@generators
def test_training_and_sampling_work_in_bf16(kind: str, small_config: Build) -> None:
    fabric = make_fabric(ComputeConfig(accelerator="cpu", precision="bf16-mixed"))
    config = small_config(kind, (1, 8, 8), 2)
    network = build_generator(config, (1, 8, 8), 2, fabric=fabric, seed=0, name="g")
    learner = build_objective(network, config, fabric=fabric, seed=0, name="g")
    losses = teach(learner, (1, 8, 8), 2, range(3))
    assert all(value.isfinite() for loss in losses for value in loss.values())
    parameters = learner.averaged().parameters()
    assert all(each.dtype == torch.float32 and each.isfinite().all() for each in parameters)
    with fabric.autocast():
        images = frozen(learner.averaged()).sample(torch.tensor([0, 1]), torch.arange(2), {})
    assert images.isfinite().all()


@generators
def test_a_stored_objective_goes_on_identically(
    objective: Build, kind: str, tmp_path: Path
) -> None:
    straight, resumed = (objective(kind, (1, 8, 8), 2) for _ in range(2))
    teach(straight, (1, 8, 8), 2, range(3))
    write_state(tmp_path / "state", straight.state_dict())
    resumed.load_state_dict(read_state(tmp_path / "state"))
    results = [teach(each, (1, 8, 8), 2, range(3, 6)) for each in (straight, resumed)]
    assert [loss["loss"].item() for loss in results[0]] == [r["loss"].item() for r in results[1]]
    left, right = (each.averaged().state_dict() for each in (straight, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)


@generators
def test_every_choice_of_every_knob_gives_images(generator: Build, kind: str) -> None:
    knobs: dict[str, Knob] = kind_module("models.generators", kind).KNOBS
    network = frozen(generator(kind, (1, 8, 8), 2))
    labels, seeds = torch.tensor([0, 1]), torch.tensor([1, 2])
    defaults = network.sample(labels, seeds, {name: knob.default for name, knob in knobs.items()})
    assert torch.equal(network.sample(labels, seeds, {}), defaults)
    for name, knob in knobs.items():
        assert knob.default in knob.choices
        assert list(knob.choices) == sorted(knob.choices)
        for choice in knob.choices:
            assert network.sample(labels, seeds, {name: choice}).isfinite().all()
