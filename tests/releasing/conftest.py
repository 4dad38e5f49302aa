"""One tiny finished run with markers in its real images, class names and paths, and its bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up import CLASSES, MARKER, SECRET

from knowledge_recycling import pipeline
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.releasing.bundle import Order


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(SECRET)
    random = np.random.default_rng(0)
    arrays = {"class_names": np.array(CLASSES)}
    for split, count in (("train", 64), ("val", 20), ("test", 20)):
        labels = np.arange(count) % 2
        images = random.integers(0, 256, (count, 12, 12), dtype=np.uint8)
        images[:, 6:] = 60 + 120 * labels[:, None, None]
        images[:, :3, :3] = MARKER
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None]}
    np.savez(folder / f"{SECRET}.npz", **arrays)
    training = {"images_seen": 320, "batch_size": 16, "snapshots": 1}
    recipe = Recipe.from_dict(
        {
            "data": {"kind": "npz", "path": str(folder / f"{SECRET}.npz")},
            "teacher": {"classifier": {"width": 8, "blocks": 1}, "training": training},
            "generator": {"width": 16},
            "generator_training": {"images_seen": 3200, "batch_size": 16, "candidates": 1},
            "tuning": {"trials": 1},
            "student": {"training": training, "synthesis": {"period": 0, "set_size": 3.0}},
            "evaluation": {"resamples": 100, "quality_images": 60, "grid_images": 2},
            "compute": {"accelerator": "cpu", "precision": "32-true", "threads": 1},
        }
    )
    out = folder / "run"
    pipeline.run(recipe, out)
    return out


@pytest.fixture(autouse=True)
def quiet_exporter(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "torch.__trace")


@pytest.fixture(scope="session")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    order = Order(with_generator=True, override="a test of <b>|it</b>")
    pipeline.release(run, out, order)
    return out
