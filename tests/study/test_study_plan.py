"""What a study plans: its cells, which of them share a run, and errors that name the mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from knowledge_recycling.errors import RecipeError
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.study.plan import Cell, Row, Study, built_in_rows

STUDY = """
seeds = [3, 5]
settings = ["tuning.trials=2"]

[sets.digits.data]
kind = "digits"

[sets.more]
data = {kind = "digits"}
tuning = {trials = 9}

[[rows]]
name = "real"
model = "teacher"

[[rows]]
name = "hard"
settings = ["student.hard_weight=1.0"]

[[rows]]
name = "wide"
settings = ["generator.width=16", "student.hard_weight=1.0"]
"""


def load(folder: Path, text: str = STUDY) -> Study:
    (folder / "study.toml").write_text(text)
    return Study.load(folder / "study.toml")


def test_cells_are_sets_times_seeds_times_rows(tmp_path: Path) -> None:
    cells = list(load(tmp_path).cells())
    assert [(cell.set, cell.seed, cell.row.name) for cell in cells] == [
        (name, seed, row)
        for name in ("digits", "more")
        for seed in (3, 5)
        for row in ("real", "hard", "wide")
    ]


def test_settings_of_the_student_share_the_run_and_others_do_not(tmp_path: Path) -> None:
    real, hard, wide = list(load(tmp_path).cells())[:3]
    assert real.run_folder == hard.run_folder == "digits/seed-3/run"
    assert wide.run_folder.startswith("digits/seed-3/run-")
    swapped = Row(name="other", settings=("student.hard_weight=0.5", "generator.width=16"))
    assert Cell("digits", 3, swapped).run_folder == wide.run_folder


def test_a_cell_has_the_recipe_of_its_set_seed_study_and_row(tmp_path: Path) -> None:
    study = load(tmp_path)
    cells = list(study.cells())
    recipe = study.recipe(cells[-1], cells[-1].row.settings)
    assert isinstance(recipe, Recipe)
    assert (recipe.seed, recipe.tuning.trials) == (5, 2)  # the study wins over the set
    assert recipe.generator.model_dump()["width"] == 16
    assert recipe.student.hard_weight == 1.0
    assert study.recipe(cells[-1], ()).generator.model_dump()["width"] != 16


def test_a_set_may_be_the_path_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "digits.toml").write_text('seed = 9\n[data]\nkind = "digits"\n')
    study = load(tmp_path, f'[sets]\na = "{tmp_path / "digits.toml"}"\n')
    cell = next(iter(study.cells()))
    assert study.recipe(cell, ()).seed == 0, "the study's seeds win over the recipe's"
    assert study.rows == built_in_rows()


def test_more_rows_come_after_those_of_the_ablation(tmp_path: Path) -> None:
    text = '[sets.a.data]\nkind = "digits"\n[[more_rows]]\nname = "{}"\ncandidate = "last"\n'
    study = load(tmp_path, text.format("another"))
    assert [row.name for row in study.lines] == [*(r.name for r in built_in_rows()), "another"]
    assert [cell.row for cell in study.cells()] == [*study.lines] * len(study.seeds)
    with pytest.raises(RecipeError, match="every row needs a name of its own"):
        load(tmp_path, text.format("GKD"))


def test_the_digest_tells_cells_apart_whatever_rows_are_called(tmp_path: Path) -> None:
    study = load(tmp_path)
    digests = [study.digest(cell) for cell in study.cells()]
    assert len({*digests[:6]}) == 6, "of one set, which has a folder of its own"
    renamed = study.model_copy(
        update={"rows": tuple(row.model_copy(update={"name": "x"}) for row in study.rows)}
    )
    assert [renamed.digest(cell) for cell in renamed.cells()] == digests


def test_the_built_in_rows_are_those_of_the_ablation() -> None:
    rows = {row.name: row for row in built_in_rows()}
    assert len(rows) == 12
    assert [row.name for row in rows.values() if row.model == "teacher"] == ["real (Teacher)"]
    (test_selected,) = (row for row in rows.values() if row.test_selected)
    assert test_selected.label.endswith("[test-selected]")
    fixed = rows["hard labels, fixed set 1x"]
    assert "student.synthesis.period=0" in fixed.settings
    assert {row.name for row in rows.values() if row.run_settings} == {
        "the same, two generators",
        "the same, one teacher labels",
        "the same, three teachers label",
    }


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seeds = [3, 5]", "seed = [3, 5]", "did you mean 'seeds'?"),
        ("seeds = [3, 5]", "seeds = []", "seeds"),
        ("seeds = [3, 5]", "seeds = [-1]", "greater than or equal to 0"),
        ('name = "hard"', 'name = "real"', "every row needs a name of its own"),
        ('model = "teacher"', 'model = "tutor"', "'teacher'"),
        ('model = "teacher"', 'modle = "teacher"', "did you mean 'model'?"),
        ("generator.width=16", "generator.widht=16", "did you mean 'width'?"),
        ("generator.width=16", "generator.width", "has no value"),
        ("tuning.trials=2", "tunning.trials=2", "did you mean 'tuning'?"),
        ("hard_weight=1.0", "hard_weight=2.0", "less than or equal to 1"),
        ('kind = "digits"', 'kind = "digit"', "did you mean 'digits'?"),
        ("[sets.more]", '[sets."a/b"]', "sets"),
        ("[[rows]]", "[rows]", "cannot be read"),
    ],
)
def test_a_mistake_is_named(before: str, after: str, said: str, tmp_path: Path) -> None:
    assert before in STUDY
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, STUDY.replace(before, after, 1))
    assert said in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such study"):
        Study.load(tmp_path / "none.toml")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, '[sets]\na = "nowhere.toml"\n')
    assert "nowhere.toml" in str(caught.value)
    with pytest.raises(RecipeError, match="sets"):
        load(tmp_path, "seeds = [0]\n")
