"""Several teachers: what they say together, and runs whose students learn from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from sklearn.metrics import accuracy_score
from torch import Tensor

import knowledge_recycling as kr
from knowledge_recycling import pipeline, stages
from knowledge_recycling.artefacts import load_ensemble
from knowledge_recycling.data.images import to_unit
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.interruption import Interrupted
from knowledge_recycling.models.build import build_classifier
from knowledge_recycling.models.contracts import Classifier
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.recycling.distillation import Ensemble, Teacher
from knowledge_recycling.storage import read_weights
from tests.test_end_to_end import weights, write_recipe

TINY = [
    "teacher.training.images_seen=64",
    "generator_training.images_seen=64",
    "student.training.images_seen=128",
    "tuning.trials=0",
    "generator_training.candidates=1",
]


class Linear(Classifier):
    """Pixels times a matrix [K,D]."""

    num_features = 1

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :1]

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def test_teachers_together_say_the_mean_of_their_calibrated_logits() -> None:
    weights, temperatures = torch.randn(3, 4, 8), (0.5, 1.0, 2.5)
    teachers = [Teacher(Linear(w), t) for w, t in zip(weights, temperatures, strict=True)]
    images = torch.randn(5, 2, 2, 2)
    said = np.einsum("nd,tkd->tnk", images.flatten(1).numpy(), weights.numpy())
    expected = (said / np.array(temperatures)[:, None, None]).mean(axis=0)
    np.testing.assert_allclose(Ensemble(teachers)(images).numpy(), expected, rtol=1e-4, atol=1e-6)
    alone = Ensemble(teachers[2:])
    assert torch.equal(alone(images), teachers[2](images)), "one teacher is its own ensemble"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A recipe, its run with one teacher and its run with three."""
    folder = tmp_path_factory.mktemp("ensemble")
    path = write_recipe(folder)
    for name, further in (("one", 0), ("three", 2)):
        settings = [*TINY, f"further_teachers={further}"]
        kr.run(kr.Recipe.load(path, settings), folder / name)
    return path, folder / "one", folder / "three"


def test_further_teachers_are_others_and_change_the_student_alone(
    runs: tuple[Path, Path, Path],
) -> None:
    _, one, three = runs
    of_one, of_three = weights(one), weights(three)
    further = {f"ensemble/teacher-{i}/weights.safetensors" for i in (2, 3)}
    assert further == {name for name in of_three if name.startswith("ensemble")}
    assert not any(name.startswith("ensemble") for name in of_one)
    teachers = {of_three[name] for name in further | {"teacher/weights.safetensors"}}
    assert len(teachers) == 3
    for name in of_one:
        same = of_one[name] == of_three[name]
        assert same == name.startswith(("teacher/", "generator/")), name


def test_the_result_tells_what_teachers_reach_together_and_how_the_student_follows(
    runs: tuple[Path, Path, Path], fabric: Fabric
) -> None:
    path, one, three = runs
    recipe = kr.Recipe.load(path)
    splits = load_splits(recipe.data)
    logits = np.zeros((len(splits.test), 2))
    for folder in ("teacher", "ensemble/teacher-2", "ensemble/teacher-3"):
        network = build_classifier(
            recipe.teacher.classifier, splits.test.shape, 2, fabric=fabric, seed=1, name="any"
        )
        read_weights(three / folder / "weights.safetensors", network)
        temperature = json.loads((three / folder / "teacher.json").read_text())["temperature"]
        with torch.no_grad():
            said = network.eval()(to_unit(splits.test.images))
        logits += said.numpy() / temperature / 3
    result = kr.read_result(three)
    assert result.ensemble is not None
    expected = accuracy_score(splits.test.labels, logits.argmax(axis=1))
    assert result.ensemble.test.accuracy.value == pytest.approx(expected)

    for run, labelling in ((one, "teacher"), (three, "ensemble")):
        said = np.load(run / "evaluation/predictions.npz")
        for split in ("test", "val"):
            mine, theirs = said[f"{split}_student"], said[f"{split}_{labelling}"]
            found = kr.read_result(run).fidelity[split]
            agreement = accuracy_score(theirs.argmax(axis=1), mine.argmax(axis=1))
            assert found.agreement.value == pytest.approx(agreement)
            divergence = np.mean(np.sum(theirs * np.log(theirs / mine), axis=1))
            assert found.divergence == pytest.approx(divergence, rel=1e-6)
    assert kr.read_result(one).ensemble is None


def test_a_stopped_ensemble_keeps_the_teachers_it_has(
    runs: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, three = runs
    recipe = kr.Recipe.load(path, [*TINY, "further_teachers=2"])
    work = stages.train_further

    def stopped(run: stages.Run, folder: Path) -> None:
        if folder.name == "teacher-3":
            raise Interrupted
        work(run, folder)

    monkeypatch.setattr(stages, "train_further", stopped)
    with pytest.raises(Interrupted):
        kr.run(recipe, tmp_path / "run", until="ensemble")
    monkeypatch.undo()
    done = tmp_path / "run/ensemble/teacher-2/done.json"
    before = done.stat().st_mtime_ns
    assert kr.run(recipe, tmp_path / "run", until="ensemble") is None
    assert done.stat().st_mtime_ns == before
    again = weights(tmp_path / "run")
    assert again == {name: weights(three)[name] for name in again}


def test_an_ensemble_is_read_back_with_the_teacher_first(runs: tuple[Path, Path, Path]) -> None:
    path, _, three = runs
    recipe = kr.Recipe.load(path, [*TINY, "further_teachers=2"])
    run = pipeline.prepare(recipe, load_splits(recipe.data), three, SilentReporter())
    loaded = load_ensemble(run)
    first = next(iter(loaded.teachers))
    assert isinstance(first, Teacher)
    saved = json.loads((three / "teacher/teacher.json").read_text())["temperature"]
    assert len(loaded.teachers) == 3
    assert first.temperature == saved
