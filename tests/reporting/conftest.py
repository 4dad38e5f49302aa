"""A run folder as a finished run leaves it: real digits, answers of two imperfect classifiers."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score

from knowledge_recycling.reporting.report import write_report

CLASSES = [f"digit {number}" for number in range(10)]


def _measure(value: float, half_width: float = 0.018) -> dict[str, float]:
    return {"value": value, "low": max(value - half_width, 0), "high": min(value + half_width, 1)}


def _reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, float]]:
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * 10).astype(int), 9)
    return [
        {
            "confidence": float(confidence[bins == each].mean()) if (bins == each).any() else 0.0,
            "accuracy": float(right[bins == each].mean()) if (bins == each).any() else 0.0,
            "count": int((bins == each).sum()),
        }
        for each in range(10)
    ]


def _utility(labels: np.ndarray, noise: float, rng: np.random.Generator) -> dict[str, Any]:
    logits = 4 * np.eye(10)[labels] + noise * rng.normal(size=(len(labels), 10))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, labels=range(10))
    recall = matrix.diagonal() / matrix.sum(axis=1)
    return {
        "n": len(labels),
        "accuracy": _measure(float((predicted == labels).mean())),
        "balanced_accuracy": _measure(float(balanced_accuracy_score(labels, predicted))),
        "auroc": _measure(float(roc_auc_score(labels, probabilities, multi_class="ovr")), 0.002),
        "f1": _measure(float(f1_score(labels, predicted, average="macro"))),
        "ece": _measure(0.023 + 0.01 * noise, 0.008),
        "recall": [_measure(float(each), 0.06) for each in recall],
        "confusion": matrix.tolist(),
        "reliability": _reliability(probabilities, labels),
    }


def _scored(cas: float, **extra: Any) -> dict[str, Any]:
    scores = {
        "cas": cas,
        "robust_cas": cas - 0.02,
        "auroc": cas / 2 + 0.5,
        "loss": 1 - cas,
        "leakage": 0.5 + cas / 20,
        "chosen": False,
        "chosen_without_limit": False,
        "full_cas": None,
        "full_robust_cas": None,
        "full_failure": None,
    }
    return scores | {"failure": None} | extra


def _result(rng: np.random.Generator) -> dict[str, Any]:
    labels = {split: np.arange(count) % 10 for split, count in (("test", 360), ("val", 180))}
    teacher = {split: _utility(labels[split], 1.05, rng) for split in labels}
    student = {split: _utility(labels[split], 1.12, rng) for split in labels}
    gap = 100 * (student["test"]["accuracy"]["value"] - teacher["test"]["accuracy"]["value"])
    candidates = [
        _scored(
            0.95 - 0.7 * 0.8**each, name=f"candidate-{each:02}", images_seen=20_000 * (each + 1)
        )
        for each in range(10)
    ]
    candidates[2] |= {
        "cas": None,
        "robust_cas": None,
        "auroc": None,
        "loss": None,
        "failure": "loss is not finite",
    }
    candidates[8] |= {"chosen": True, "chosen_without_limit": True}
    tuning = [
        _scored(
            0.94 - 0.1 * (std - 1.2) ** 2 + 0.005 * float(rng.normal()),
            trial=trial,
            knobs={"std": std, "guidance": round(0.5 * (trial % 4), 2), "filter": trial % 3 == 0},
            full_cas=0.95 if trial < 2 else None,
            full_robust_cas=0.93 if trial < 2 else None,
            full_failure="given up after 9,000 images: behind" if trial == 2 else None,
        )
        for trial, std in enumerate(np.linspace(1, 2, 12).round(2).tolist())
    ]
    best = max(tuning[:9], key=lambda trial: trial["cas"])
    best["chosen"] = tuning[10]["chosen_without_limit"] = True
    tuning[9] |= {
        "cas": None,
        "robust_cas": None,
        "auroc": None,
        "loss": None,
        "failure": "out of memory",
    }
    return {
        "schema": "1",
        "dataset": {
            "kind": "digits",
            "name": "digits",
            "shape": [1, 8, 8],
            "classes": CLASSES,
            "counts": {"train": [126] * 10, "val": [18] * 10, "test": [36] * 10},
            "warnings": ["2 images of train are also in test (/home/someone/scans/0007.png)"],
        },
        "profile": "cpu",
        "seed": 0,
        "teacher": teacher,
        "student": student,
        "ensemble": None,
        "fidelity": {
            "test": {"agreement": _measure(0.95), "divergence": 0.0213},
            "val": {"agreement": _measure(0.961), "divergence": 0.0187},
        },
        "gap": {
            "accuracy_pp": gap,
            "accuracy_ci95": [gap - 1.9, gap + 1.8],
            "balanced_accuracy_pp": gap - 0.1,
            "balanced_accuracy_ci95": [gap - 2.0, gap + 1.7],
            "auroc_pp": -0.2,
            "auroc_ci95": [-0.5, 0.1],
        },
        "rows": [
            {"name": "hard labels, fixed set", "test": student["test"], "val": student["val"]},
            {"name": "hard labels, regenerated", "test": {"accuracy": 0.951}, "val": {}},
        ],
        "chosen": {"candidate": "candidate-08", "knobs": best["knobs"]},
        "candidates": candidates,
        "tuning": tuning,
        "selection": {
            "gain_over_last_candidate_pp": 0.6,
            "gain_over_default_knobs_pp": 1.1,
            "seconds": 71.4,
            "leakage_limit": 0.546,
            "cost_of_limit_pp": 0.2,
            "student_leakage": 0.551,
        },
        "accelerated": [
            {"evaluations_before": 7, "evaluations": 2, "distance": 0.0635, "used": True}
        ],
        "quality": {
            "frechet_distance": 3.7261,
            "kernel_distance": 0.0412,
            "precision": 0.871,
            "recall": 0.644,
            "density": 0.91,
            "coverage": 0.802,
            "nearest_member_distance": {"median": 2.1, "holdout_median": 2.2},
        },
        "privacy": {},
        "audit": None,
        "cost": {
            "seconds": {
                "teacher": 14.2,
                "generator": 96.0,
                "candidates": 38.5,
                "tuning": 32.9,
                "student": 28.1,
                "evaluation": 4.4,
            },
            "images_per_second": {
                "teacher": 9120.0,
                "generator": 2210.4,
                "sampling": 850.2,
                "student": 640.9,
            },
            "peak_rss_mib": 912.3,
        },
        "changed_settings": {
            "data.path": "/home/someone/scans",
            "generator.images": 200_000,
            "student.temperature": 2.0,
        },
        "versions": {"knowledge_recycling": "0.1.0", "python": "3.11.9", "torch": "2.6.0"},
        "digests": {
            split: f"{digit}" * 64
            for split, digit in zip(("train", "val", "test"), "abc", strict=True)
        },
    }


def _log(images: int, final_loss: float, rng: np.random.Generator, *, looks: bool) -> str:
    lines = []
    for step in range(1, 201):
        loss = final_loss + 2 * np.exp(-step / 25) + 0.04 * abs(rng.normal())
        entry = {"images_seen": images * step // 200, "loss": loss, "images_per_second": 900.0}
        if looks and step % 20 == 0:
            entry |= {"val_accuracy": 0.97 - 0.5 * np.exp(-step / 30), "val_loss": loss}
        lines.append(json.dumps(entry))
    return "\n".join(lines) + "\n"


def _samples(rng: np.random.Generator) -> dict[str, np.ndarray]:
    digits = load_digits()
    images = (digits.images * 15.9).astype(np.uint8)
    by_class = [images[digits.target == each] for each in range(10)]
    real = np.stack([each[:10, None] for each in by_class])
    others = np.stack([each[20:30, None] for each in by_class])
    noise = rng.normal(scale=14, size=others.shape)
    return {"real": real, "synthetic": np.clip(others + noise, 0, 255).astype(np.uint8)}


@dataclass(frozen=True)
class FinishedRun:
    """A run folder that no test may change, and the values of its `result.json`."""

    values: dict[str, Any]
    folder: Path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    rng, run = np.random.default_rng(0), tmp_path_factory.mktemp("finished")
    for stage, images, loss in (("teacher", 60_000, 0.1), ("generator", 200_000, 0.2)):
        (run / stage).mkdir()
        (run / stage / "metrics.jsonl").write_text(
            _log(images, loss, rng, looks=stage == "teacher")
        )
    (run / "student").mkdir()
    (run / "student" / "metrics.jsonl").write_text(_log(80_000, 0.4, rng, looks=True))
    (run / "evaluation").mkdir()
    np.savez(run / "evaluation" / "samples.npz", **_samples(rng))
    values = _result(rng)
    (run / "result.json").write_text(json.dumps(values))
    return FinishedRun(values, run)


@pytest.fixture(scope="session")
def internal_page(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The internal report of the finished run."""
    return write_report(finished_run.folder, target=tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def result(finished_run: FinishedRun) -> dict[str, Any]:
    """The values of `result.json`, free to change."""
    return copy.deepcopy(finished_run.values)


@pytest.fixture
def make_run(finished_run: FinishedRun, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Makes a run folder, to be changed at will, of the values of a `result.json`."""

    def make(values: dict[str, Any]) -> Path:
        run = tmp_path / "run"
        shutil.copytree(finished_run.folder, run)
        (run / "result.json").write_text(json.dumps(values))
        return run

    return make
