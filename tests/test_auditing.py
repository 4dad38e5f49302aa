"""The audit through the command line, on a tiny run: what it writes, resumes and leaves out."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_end_to_end import kr_command, write_recipe

from knowledge_recycling import pipeline, shadows
from knowledge_recycling.artefacts import Run
from knowledge_recycling.auditing import (
    Answered,
    check_holdout,
    check_supported,
    enough_shadows,
    generator_privacy,
    targets_of,
)
from knowledge_recycling.config import Facts
from knowledge_recycling.data.images import ImageSet
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.errors import DataError, RecipeError, RunError
from knowledge_recycling.fanout import Workers, in_order
from knowledge_recycling.privacy.canaries import Planted
from knowledge_recycling.privacy.many import half_memberships
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.shadows import LOSSES, Order
from knowledge_recycling.training.classifier import DivergedError

CANARIES = ", mislabelled canaries"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = write_recipe(tmp_path)
    text = re.sub(r"images_seen = \d+", "images_seen = 320", path.read_text(encoding="utf-8"))
    text = re.sub(r"trials = \d+", "trials = 1", text)
    dp = "[audit.yardsticks.dp]\nepochs = 2\nepsilons = [8.0]\n"
    path.write_text(text + "\n[audit]\nqueries = 2\n" + dp, encoding="utf-8")
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def made_run(recipe: Path, tmp_path: Path) -> Run:
    """A run that is ready to train, its derived settings filled in."""
    given = Recipe.load(recipe, ["audit.shadows=8"])
    splits = load_splits(given.data)
    return pipeline.prepare(given, splits, tmp_path / "prepared", SilentReporter())


@pytest.mark.slow
def test_an_audit_reports_every_target_and_goes_on_where_it_stopped(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert kr_command("run", recipe, "--out", out, "--quiet").returncode == 0
    assert read(out / "result.json")["audit"] is None
    told = kr_command("audit", out, "--set", "audit.shadows=8", "--quiet")
    assert told.returncode == 0, told.stderr
    assert "leaks at least" in told.stdout
    result = read(out / "result.json")
    assert result["audit"]["shadows"] == 8
    targets = {name.partition(",")[0] for name in result["privacy"]}
    rows = {row["name"]: row for row in result["audit"]["yardsticks"]}
    assert rows.keys() == {
        "random guess", "teacher", "student", "early-stopped teacher", "GKD student on 0.3x",
        "GKD student on 4x", "hard-label student on 4x", "DP-SGD with epsilon 8",
    }  # fmt: skip
    assert rows["DP-SGD with epsilon 8"]["epsilon"] <= 8
    made = rows.keys() - {"random guess"}
    of_images = {"synthetic set", "generator"}
    assert targets == {"overfitted classifier (sanity)"} | of_images | made
    assert result["audit"]["epsilon_at_least"].keys() == targets - of_images
    assert result["privacy"]["generator"].keys() == {"loss", "calibrated_loss"}
    assert "student, mislabelled canaries" in result["privacy"]

    members = dict(np.load(out / "audit/members.npz"))
    for number, row in enumerate(members["members"]):
        logits = np.load(out / f"audit/shadow-{number:03d}/signals.npz")["student"]
        assert logits.shape[:1] == (2,)
        assert logits.shape[1] > len(row), "the population stands behind the pool"
    assert "leakage was not audited" not in (out / "report.html").read_text(encoding="utf-8")

    before = {path: path.stat().st_mtime_ns for path in (out / "audit").rglob("signals.npz")}
    assert kr_command("audit", out, "--set", "audit.shadows=8", "--quiet").returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert read(out / "result.json")["privacy"] == result["privacy"]


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["fixed", "repeated"])
def test_each_of_several_generators_is_attacked(
    recipe: Path, tmp_path: Path, selection: str
) -> None:
    overrides = ["audit.shadows=8", f"audit.selection={selection}", "further_generators.second={}"]
    given = Recipe.load(recipe, [*overrides, "audit.yardsticks.dp.epsilons=[]"])
    result = pipeline.run(given, tmp_path / "run")
    assert result is not None
    assert result.generators == ("generator", "generator second")
    for name in result.generators:
        assert result.privacy[name].keys() == {"loss", "calibrated_loss"}
    answers = dict(np.load(tmp_path / "run/audit/shadow-000/signals.npz"))
    losses = [answers[f"{name}{LOSSES}"] for name in result.generators]
    assert not np.allclose(*losses), "they are generators of their own"
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "generator second" in page
    assert "attacks on the Generator itself" not in page


@pytest.mark.slow
def test_a_failed_shadow_is_left_out_and_counted(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shadows.make_shadow

    def fails_for_two(order: shadows.Order, folder: Path) -> None:
        if order.number == 2:
            raise DivergedError("the training of the teacher diverged")
        made(order, folder)

    monkeypatch.setattr(shadows, "make_shadow", fails_for_two)
    overrides = ["audit.shadows=8", 'audit.mode="classifier"']
    result = pipeline.run(Recipe.load(recipe, overrides), tmp_path / "run")
    assert result is not None
    assert result.audit is not None
    assert (result.audit.shadows, result.audit.failed_shadows) == (7, 1)
    assert result.audit.mode == "classifier"
    rows = {row.name for row in result.audit.yardsticks}
    assert rows == {"random guess", "teacher", "early-stopped teacher", "DP-SGD with epsilon 8"}
    assert not any(name.startswith("student") for name in result.privacy)


def test_a_generator_that_knows_its_members_by_heart_is_found_out() -> None:
    """Each image has its own difficulty, which hides its membership until it is taken off."""
    random = np.random.default_rng(0)
    members = half_memberships(12, 200, random)
    difficulty = random.normal(0, 3, 200)
    losses = difficulty - 0.5 * members + random.normal(0, 0.1, members.shape)
    told = [random.permutation(each) for each in losses]  # of a generator that tells nothing
    answers = tuple(
        {f"generator{LOSSES}": each, f"generator second{LOSSES}": noise}
        for each, noise in zip(losses, told, strict=True)
    )
    kinds = np.zeros(200, dtype=np.int64)
    kinds[180:190], kinds[190:] = 1, -1  # canaries; images that too few shadows know
    labels = np.zeros(200, dtype=np.int64)
    found = generator_privacy(answers, members, kinds, labels)
    targets = ("generator", "generator second")
    assert found.keys() == {f"{name}{of}" for name in targets for of in ("", CANARIES)}
    assert found["generator"]["calibrated_loss"]["auc"] > 0.99
    assert abs(found["generator second"]["calibrated_loss"]["auc"] - 0.5) < 0.05
    pooled = roc_auc_score(members[:, :180].ravel(), -losses[:, :180].ravel())
    assert found["generator"]["loss"]["auc"] == pytest.approx(pooled)
    assert pooled < 0.6
    assert generator_privacy(({"student": losses},), members, kinds, labels) == {}


def test_a_folder_without_a_run_cannot_be_audited(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run in this folder"):
        pipeline.audit(tmp_path / "nothing")


def test_copies_of_members_are_refused_as_holdout_or_left_out(
    make_set: Callable[..., ImageSet],
) -> None:
    members, holdout = make_set(40), make_set(30)
    assert check_holdout(members, holdout, keep=False).all()
    images = holdout.images.copy()
    images[[3, 5]] = members.images[[0, 9]]
    overlapping = replace(holdout, images=images)
    with pytest.raises(DataError, match="2 validation images are also training") as caught:
        check_holdout(members, overlapping, keep=False)
    assert "leave_out" in str(caught.value)
    apart = check_holdout(members, overlapping, keep=True)
    assert np.flatnonzero(~apart).tolist() == [3, 5]


def test_a_holdout_too_small_is_refused(make_set: Callable[..., ImageSet]) -> None:
    with pytest.raises(DataError, match="too small") as caught:
        check_holdout(make_set(40), make_set(19), keep=False)
    assert "at least 20" in str(caught.value)


def test_images_without_two_shadows_on_either_side_are_left_out() -> None:
    members = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1]], dtype=bool)
    assert enough_shadows(members).tolist() == [False, True, True]


def test_shadows_that_leave_no_image_out_are_refused(made_run: Run) -> None:
    planted = Planted(made_run.members, np.zeros(len(made_run.members), dtype=np.int64))
    always = np.ones((8, len(made_run.members)), dtype=bool)
    with pytest.raises(DataError, match="no image is OUT"):
        targets_of(made_run, planted, Answered(always, (), {}))


def order_of(run: Run, folder: Path, **changes: Any) -> Order:
    members = np.arange(len(run.members)) % 2 == 0
    audit = run.recipe.audit.model_copy(update=changes)
    recipe = run.recipe.model_copy(update={"audit": audit})
    return Order(replace(run, recipe=recipe), run.members, members, 0, folder)


def test_a_shadow_of_another_recipe_or_pipeline_is_refused(
    made_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def makes_nothing(order: Order, folder: Path) -> None:
        (folder / "answers").write_text("none", encoding="utf-8")

    monkeypatch.setattr(shadows, "make_shadow", makes_nothing)
    part = tmp_path / "shadow-000"
    assert shadows.fulfil(order_of(made_run, part)).failure is None
    assert shadows.fulfil(order_of(made_run, part)).failure is None, "it is done"
    with pytest.raises(RunError, match="another 'recipe'"):
        shadows.fulfil(order_of(made_run, part, queries=7))
    monkeypatch.setattr(shadows, "VERSION", shadows.VERSION + 1)
    with pytest.raises(RunError, match="another 'pipeline'"):
        shadows.fulfil(order_of(made_run, part))


def test_an_audit_without_its_library_is_refused_before_training(
    made_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_supported(made_run.recipe)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(RecipeError, match="Opacus"):
        check_supported(made_run.recipe)


@pytest.mark.slow
def test_a_shadow_of_another_process_is_the_one_made_here(made_run: Run, tmp_path: Path) -> None:
    for name, workers in (("here", Workers(1, 1, "here")), ("there", Workers(2, 1, "loky"))):
        order = order_of(made_run, tmp_path / name, mode="classifier")
        (outcome,) = in_order(shadows.fulfil, [order], workers, tmp_path)
        assert outcome.failure is None
    answers = [np.load(tmp_path / name / shadows.SIGNALS) for name in ("here", "there")]
    assert "teacher" in answers[0].files
    for name in answers[0].files:
        np.testing.assert_array_equal(answers[0][name], answers[1][name])


def test_a_shadow_trains_as_long_as_a_run_on_its_images_would(
    make_facts: Callable[..., Facts],
) -> None:
    recipe = Recipe.from_dict({"data": {"kind": "digits"}})
    whole, half = (recipe.completed(make_facts(num_train=each)) for each in (4000, 2000))
    shorter = shadows.shortened(whole, 4000, 2000)
    for length in (
        lambda each: each.teacher.training.images_seen,
        lambda each: each.generator_training.images_seen,
        lambda each: each.student.training.images_seen,
    ):
        assert length(shorter) == pytest.approx(length(half), abs=1)
    assert (whole.further_teachers, half.further_teachers) == (0, 2)
    assert shorter.further_teachers == 0, "a shadow is made as its run was"
