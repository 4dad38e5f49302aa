"""What TensorBoard and MLflow are told, read back with their own readers."""

from __future__ import annotations

import json
import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import knowledge_recycling as kr
from knowledge_recycling import extras
from knowledge_recycling.errors import KRError
from knowledge_recycling.loggers import LoggingConfig, make_loggers

MARKER = "Jane-Doe-1970"


def write_set(folder: Path) -> Path:
    random = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 64), ("val", 24), ("test", 24)):
        arrays[f"{split}_images"] = random.integers(0, 256, (size, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(size) % 2
    folder.mkdir()
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


def recipe(tmp_path: Path, *loggers: str) -> kr.Recipe:
    return kr.Recipe.from_dict(
        {
            "data": {"kind": "npz", "path": str(write_set(tmp_path / MARKER))},
            "teacher": {
                "classifier": {"width": 8, "blocks": 1},
                "training": {"images_seen": 320, "batch_size": 32, "snapshots": 3},
            },
            "generator": {"width": 16},
            "generator_training": {"images_seen": 128, "batch_size": 32, "candidates": 2},
            "compute": {"accelerator": "cpu", "precision": "32-true"},
            "logging": {"loggers": loggers},
        }
    )


def records(stage: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


def run(recipe: kr.Recipe, out: Path, until: str = "generator") -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the set, and of the loggers' own old code
        kr.run(recipe, out, until=until)


def test_tensorboard_holds_the_records(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(recipe(tmp_path, "tensorboard"), tmp_path / "run")
    logs = tmp_path / "run" / "logs" / "tensorboard"
    events = reader.EventAccumulator(str(logs)).Reload()
    for stage in ("teacher", "generator"):
        for name in ("loss", "images_per_second"):
            told = {each.step: each.value for each in events.Scalars(f"{stage}/{name}")}
            kept = {each["images_seen"]: each[name] for each in records(tmp_path / "run" / stage)}
            assert told == pytest.approx(kept)
    assert not any(MARKER.encode() in path.read_bytes() for path in logs.rglob("*"))


def test_mlflow_holds_the_records_in_one_run_that_goes_on(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    out, given = tmp_path / "run", recipe(tmp_path, "mlflow")
    run(given, out, "teacher")
    run(given, out, "generator")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'logs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("knowledge_recycling")
    (found,) = client.search_runs([experiment.experiment_id])
    for stage, name in (("teacher", "val_accuracy"), ("generator", "loss")):
        history = client.get_metric_history(found.info.run_id, f"{stage}/{name}")
        told = {each.step: each.value for each in history}
        assert told == {each["images_seen"]: each[name] for each in records(out / stage)}
    assert found.data.params == {}
    assert MARKER.encode() not in (out / "logs" / "mlflow.db").read_bytes()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_logger_is_one_line_that_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    config = LoggingConfig.model_validate({"loggers": [name]})
    with pytest.raises(KRError) as caught:
        make_loggers(config, tmp_path)
    assert str(caught.value) == (
        f"'{name}' is not installed; it comes with: pip install 'knowledge-recycling[loggers]'"
    )


def test_the_log_of_a_run_has_stages_and_tasks_with_their_times(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(recipe(tmp_path), out)
    lines = [line.partition(" ") for line in (out / "run.log").read_text().splitlines()]
    times = [datetime.fromisoformat(time) for time, _, _ in lines]
    assert times == sorted(times)
    told = [line for _, _, line in lines]
    assert told.index("teacher") < told.index("generator")
    assert "teacher: 320 of 320 images done" in told
    assert not (out / "logs").exists()
