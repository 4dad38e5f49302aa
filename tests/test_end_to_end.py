"""Tiny but complete runs through the real command line and the Python API.

An interrupted and resumed run must equal a straight one bit for bit; poisoned test labels must
change nothing before the evaluation; the session of the README is executed as it stands.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

import knowledge_recycling as kr
from knowledge_recycling import pipeline
from knowledge_recycling.template import write_recipe as write_recipe_template

ROOT = Path(__file__).parents[1]
KR = [sys.executable, "-m", "knowledge_recycling.cli"]

RECIPE = """
[data]
kind = "npz"
path = "{path}"

[teacher.classifier]
width = 8

[teacher.training]
images_seen = 1600
batch_size = 32
snapshots = 2

[generator]
width = 16

[generator_training]
images_seen = 1600
batch_size = 32
candidates = 2

[tuning]
trials = 2

[student.training]
images_seen = 1600
batch_size = 32
snapshots = 2

[student.synthesis]
period = 2

[evaluation]
resamples = 100
quality_images = 60
grid_images = 2

[compute]
accelerator = "cpu"
precision = "32-true"
threads = 1
"""

Kr = subprocess.CompletedProcess[str]


def kr_command(*arguments: object) -> Kr:
    return subprocess.run(
        [*KR, *map(str, arguments)], capture_output=True, text=True, timeout=240, cwd=ROOT
    )


def write_set(path: Path, *, poisoned: bool = False) -> Path:
    """Two kinds of stripes in noise; poisoned: the test labels are the wrong way round."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 96), ("val", 32), ("test", 40)):
        labels = np.arange(size) % 2
        images = random.normal(128, 30, (size, 8, 8))
        images[labels == 0, ::2] += 60
        images[labels == 1, :, ::2] += 60
        arrays[f"{split}_images"] = images.clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = 1 - labels if poisoned and split == "test" else labels
    np.savez(path, **arrays)
    return path


def write_recipe(folder: Path, *, poisoned: bool = False) -> Path:
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.format(path=write_set(folder / "tiny.npz", poisoned=poisoned)))
    return recipe


def weights(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*.safetensors"))}


def stable(run: Path) -> dict[str, Any]:
    """The numbers of a result that do not depend on the clock."""
    result = json.loads((run / "result.json").read_text())
    return {key: result[key] for key in ("teacher", "student", "gap", "chosen", "quality")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Kr]:
    """A recipe, the folder of its straight run through the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("straight")
    recipe = write_recipe(folder)
    return recipe, folder / "run", kr_command("run", recipe, "--out", folder / "run")


def test_one_command_gives_student_gap_and_report(finished: tuple[Path, Path, Kr]) -> None:
    _, run, process = finished
    assert process.returncode == 0, process.stderr
    assert "gap" in process.stdout
    result = kr.read_result(run)
    predictions = np.load(run / "evaluation/predictions.npz")
    for who in ("teacher", "student"):
        accuracy = accuracy_score(
            predictions["test_labels"], predictions[f"test_{who}"].argmax(axis=1)
        )
        assert getattr(result, who).test.accuracy.value == pytest.approx(accuracy)
    student, teacher = result.student.test.accuracy.value, result.teacher.test.accuracy.value
    assert student is not None
    assert teacher is not None
    assert result.gap.accuracy_pp == pytest.approx(100 * (student - teacher))
    assert len(result.candidates) == 2
    assert "<html" in (run / "report.html").read_text()
    assert not list(run.rglob("scratch"))


def test_the_same_command_again_trains_nothing(finished: tuple[Path, Path, Kr]) -> None:
    recipe, run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    kr.run(kr.Recipe.load(recipe), run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before


def test_an_interrupted_run_resumes_to_the_same_bits(
    finished: tuple[Path, Path, Kr], tmp_path: Path
) -> None:
    recipe, straight, _ = finished
    run = tmp_path / "run"
    for stage in ("teacher", "generator", "student"):
        process = subprocess.Popen(
            [*KR, "run", str(recipe), "--out", str(run)], stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while not (run / stage / "begun.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 75
        assert process.stderr is not None
        assert "Go on with: kr run" in process.stderr.read()
        process.stderr.close()
        assert not (run / "result.json").exists()
    kr.run(kr.Recipe.load(recipe), run)
    assert weights(run) == weights(straight)
    assert stable(run) == stable(straight)


def test_the_test_split_is_opened_by_the_evaluation_only(
    finished: tuple[Path, Path, Kr], tmp_path: Path
) -> None:
    _, honest, _ = finished
    run = tmp_path / "run"
    kr.run(kr.Recipe.load(write_recipe(tmp_path, poisoned=True)), run)
    assert weights(run) == weights(honest)
    for name in ("candidates/candidates.json", "tuning/trials.json"):
        untimed = [
            [{**row, "images_per_second": None} for row in json.loads((each / name).read_text())]
            for each in (run, honest)
        ]
        assert untimed[0] == untimed[1]
    assert stable(run)["teacher"]["val"] == stable(honest)["teacher"]["val"]
    right = stable(honest)["teacher"]["test"]["accuracy"]["value"]
    assert stable(run)["teacher"]["test"]["accuracy"]["value"] == pytest.approx(1 - right)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["biggan", "r3gan"])
def test_another_kind_of_generator_is_one_setting(
    kind: str, finished: tuple[Path, Path, Kr], tmp_path: Path
) -> None:
    recipe, _, _ = finished
    shorter = [f"generator.kind={kind}", "generator_training.images_seen=320"]
    result = kr.run(kr.Recipe.load(recipe, shorter), tmp_path / "run")
    assert result is not None
    assert result.gap.accuracy_pp is not None
    assert set(result.chosen.knobs) == {"latent_std", "hard_weight", "prior_correction"}
    before = weights(tmp_path / "run")
    kr.run(kr.Recipe.load(recipe, shorter), tmp_path / "run")
    assert weights(tmp_path / "run") == before


def test_another_recipe_on_the_same_folder_is_refused(finished: tuple[Path, Path, Kr]) -> None:
    recipe, run, _ = finished
    before = weights(run)
    with pytest.raises(kr.RunError, match=r"teacher\.training\.learning_rate") as caught:
        kr.run(kr.Recipe.load(recipe, ["teacher.training.learning_rate=0.05"]), run)
    assert "--redo teacher" in str(caught.value)
    with pytest.raises(kr.RunError, match="seed"):
        kr.run(kr.Recipe.load(recipe, ["seed=1"]), run)
    assert weights(run) == before


def test_redo_keeps_what_does_not_depend_on_the_stage(tmp_path: Path) -> None:
    for name in pipeline.STAGE_NAMES:
        (tmp_path / name).mkdir()
    pipeline.forget(tmp_path, "student")
    assert {each.name for each in tmp_path.iterdir()} == {
        "data", "teacher", "ensemble", "generator", "candidates", "tuning", "audit"
    }  # fmt: skip
    pipeline.forget(tmp_path, "teacher")
    assert {each.name for each in tmp_path.iterdir()} == {"data", "ensemble", "generator"}
    pipeline.forget(tmp_path, "data")
    assert list(tmp_path.iterdir()) == []


def test_redo_does_a_stage_and_those_after_it_anew(
    finished: tuple[Path, Path, Kr], tmp_path: Path
) -> None:
    recipe, _, _ = finished
    run = tmp_path / "run"
    assert kr.run(kr.Recipe.load(recipe), run, until="teacher") is None
    first = weights(run)
    changed = kr.Recipe.load(recipe, ["teacher.training.learning_rate=0.05"])
    assert kr.run(changed, run, until="teacher", redo="teacher") is None
    assert weights(run).keys() == first.keys()
    assert weights(run) != first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("teacher.training.learning_rat=1", "did you mean 'learning_rate'?"),
        ("teacher.training.learning_rate=-1", "greater than 0"),
        ("seed=text", "integer"),
        ("data.path=nowhere.npz", "nowhere.npz"),
        ("tuning.knobs=['guidence']", "did you mean 'guidance'?"),
        ("teacher.training.batch_size=1000", "fewer training images than a batch"),
        ("generator.kind=flo", "did you mean 'flow'?"),
        ("teacher.classifier={kind='timm', name='resnet81'}", "timm has no model"),
        ("compute.accelerator=tpu", "'cpu'"),
    ],
)
def test_a_mistake_is_named_before_any_training(
    change: str, said: str, finished: tuple[Path, Path, Kr], tmp_path: Path
) -> None:
    recipe, _, _ = finished
    with pytest.raises(kr.KRError) as caught:
        kr.run(kr.Recipe.load(recipe, [change]), tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run/teacher").exists()


def test_the_command_line_shows_no_traceback(tmp_path: Path) -> None:
    process = kr_command("run", tmp_path / "none.toml")
    assert process.returncode == 2
    assert "there is no such recipe" in process.stderr
    assert "Traceback" not in process.stderr


def test_new_check_and_status(finished: tuple[Path, Path, Kr], tmp_path: Path) -> None:
    recipe, run, _ = finished
    assert kr_command("new", tmp_path / "my.toml", "--kind", "digits").returncode == 0
    assert kr.Recipe.load(tmp_path / "my.toml").data.kind == "digits"
    shown = kr_command("check", recipe).stdout
    assert "96" in shown
    assert "8x8" in shown
    status = kr_command("status", run).stdout
    assert status.count("done") == 8


@pytest.mark.parametrize("kind", ["digits", "folder", "npz", "medmnist", "table", "hub", "dicom"])
def test_every_line_of_a_new_recipe_may_be_uncommented(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    write_recipe_template(path, kind)
    lines = path.read_text().splitlines()
    offered = [re.sub(r"^# (?=\w+ = [^.]|\[)", "", line) for line in lines]
    assert "seed = 0" in offered
    (tmp_path / "all.toml").write_text("\n".join(offered))
    recipe = kr.Recipe.load(tmp_path / "all.toml")
    assert recipe.data.kind == kind
    assert recipe.tuning.trials == 4


def test_the_session_of_the_readme_runs(
    finished: tuple[Path, Path, Kr], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _, _ = finished
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    assert len([line for line in code.group(1).splitlines() if line.strip()]) <= 6
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/digits.toml").write_text(recipe.read_text())
    names: dict[str, Any] = {}
    exec(code.group(1), names)  # noqa: S102
    assert names["result"].gap.accuracy_pp is not None
    assert os.path.exists("runs/digits/report.html")  # noqa: PTH110
