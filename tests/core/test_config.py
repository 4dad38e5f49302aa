"""Recipes: the message of each wrong key or value, kinds by file or module, derived values.

Checked against the fields as written in the models, Python's own `tomllib`, and a module that the
test writes itself.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knowledge_recycling.config import DERIVED, Config, Facts, did_you_mean, kind_module, validate
from knowledge_recycling.errors import KRError, RecipeError
from knowledge_recycling.recipe import Recipe, apply_override, changed_settings

DIGITS = {"data": {"kind": "digits"}}


def refusal(**changes: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(DIGITS | changes)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "key", "hint"),
    [
        ({"sede": 1}, "sede", "seed"),
        ({"teacher": {"trainin": {}}}, "teacher.trainin", "training"),
        ({"student": {"synthesis": {"perod": 2}}}, "student.synthesis.perod", "period"),
        ({"teacher": {"classifier": {"widht": 8}}}, "teacher.classifier.widht", "width"),
        ({"student": {"classifier": {"bloks": 8}}}, "student.classifier.bloks", "blocks"),
        ({"generator": {"kind": "flow", "dpth": 2}}, "generator.dpth", "depth"),
        (
            {"student": {"synthesis": {"filter": {"treshold": 0.1}}}},
            "student.synthesis.filter.treshold",
            "threshold",
        ),
    ],
)
def test_an_unknown_key_is_named_in_full_with_the_nearest_valid_one(
    changes: dict[str, Any], key: str, hint: str
) -> None:
    error = refusal(**changes)
    assert error.where == key
    assert error.next_step == f"did you mean '{hint}'?"
    assert hint in str(error.expected)


def test_an_unknown_key_near_nothing_is_to_be_removed() -> None:
    assert refusal(xyzzy=1).next_step == "remove the key"


@pytest.mark.parametrize(
    ("changes", "key", "got"),
    [
        ({"seed": "many"}, "seed", "'many'"),
        ({"seed": -1}, "seed", "-1"),
        ({"teacher": {"training": {"batch_size": 0}}}, "teacher.training.batch_size", "0"),
        ({"teacher": {"training": {"balance": "x"}}}, "teacher.training.balance", "'x'"),
        ({"student": {"synthesis": {"set_size": 0}}}, "student.synthesis.set_size", "0"),
        ({"student": {"hard_weight": 1.5}}, "student.hard_weight", "1.5"),
        ({"generator": {"width": 12}}, "generator.width", "12"),
        ({"teacher": {"classifier": {"width": 0}}}, "teacher.classifier.width", "0"),
        ({"teacher": {"classifier": {"width": 12}}}, "teacher.classifier.width", "12"),
        ({"compute": {"threads": -1}}, "compute.threads", "-1"),
    ],
)
def test_a_wrong_type_or_range_names_key_and_value(
    changes: dict[str, Any], key: str, got: str
) -> None:
    error = refusal(**changes)
    assert error.where == key
    assert error.got == got
    assert error.expected


def test_a_plugin_that_is_no_table_is_refused() -> None:
    assert refusal(generator="flow").where == "generator"


@pytest.mark.parametrize(
    ("family", "kind", "known"),
    [
        ("models.generators", "flwo", ("flow",)),
        ("models.classifiers", "resnt", ("resnet", "timm")),
        ("data.sources", "fodler", ("digits", "folder", "npz")),
    ],
)
def test_an_unknown_kind_lists_the_known_ones(
    family: str, kind: str, known: tuple[str, ...]
) -> None:
    with pytest.raises(RecipeError) as caught:
        kind_module(family, kind)
    assert all(name in str(caught.value.expected) for name in known)
    assert caught.value.next_step == did_you_mean(kind, known)


OWN_MODULE = """
from knowledge_recycling.config import PluginConfig

class Config(PluginConfig):
    kind: str = "{name}"
    leaves: int = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / "lab_of_the_tests"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "forest.py").write_text(OWN_MODULE.format(name="lab_of_the_tests.forest"))
    (package / "broken.py").write_text("import a_module_that_nobody_has\n")
    (package / "empty.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return "lab_of_the_tests.forest"


def test_a_module_of_ones_own_is_a_kind(own_module: str) -> None:
    teacher = {"classifier": {"kind": own_module, "leaves": 5}}
    recipe = Recipe.from_dict(DIGITS | {"teacher": teacher})
    assert recipe.teacher.classifier.model_dump() == {"kind": own_module, "leaves": 5}


def test_a_module_of_ones_own_gets_the_same_checks(own_module: str) -> None:
    error = refusal(teacher={"classifier": {"kind": own_module, "leavs": 5}})
    assert error.where == "teacher.classifier.leavs"
    assert error.next_step == "did you mean 'leaves'?"


@pytest.mark.parametrize("name", ["forrest", "broken", "empty"])
def test_a_module_that_cannot_be_used_is_named(own_module: str, name: str) -> None:
    kind = f"{own_module.rpartition('.')[0]}.{name}"
    assert kind in str(refusal(teacher={"classifier": {"kind": kind}}))


class Inner(Config):
    size: int = DERIVED
    other: int = 7

    def derived(self, facts: Facts) -> dict[str, Any]:
        return {"size": facts.num_train}


class Outer(Config):
    inner: Inner = Inner()
    share: float = DERIVED
    nothing: int | None = None

    def derived(self, facts: Facts) -> dict[str, Any]:
        return {"share": 0.5}


def test_completed_fills_what_is_underived_and_nothing_else(
    make_facts: Callable[..., Facts],
) -> None:
    given = validate(Outer, {"inner": {"size": 3}})
    assert Outer().completed(make_facts()).model_dump() == {
        "inner": {"size": 64, "other": 7},
        "share": 0.5,
        "nothing": None,
    }
    assert given.completed(make_facts()).inner.size == 3
    assert given.share is None, "the original is unchanged"


def test_a_completed_recipe_keeps_every_given_value_and_is_complete(
    make_facts: Callable[..., Facts],
) -> None:
    values = DIGITS | {"teacher": {"training": {"batch_size": 48}}, "generator": {"patch": 4}}
    recipe = Recipe.from_dict(values)
    completed = recipe.completed(make_facts())
    assert completed.teacher.training.batch_size == 48
    assert completed.generator.model_dump()["patch"] == 4
    assert completed.student.classifier == completed.teacher.classifier
    assert completed.completed(make_facts(num_train=9999)) == completed
    dumped = completed.model_dump()
    for part in (dumped["generator_training"], dumped["generator"]):
        assert None not in part.values()


@pytest.mark.parametrize(("num_train", "further"), [(100, 2), (2000, 2), (2001, 0), (60_000, 0)])
def test_further_teachers_label_where_images_are_few_unless_the_recipe_says_otherwise(
    make_facts: Callable[..., Facts], num_train: int, further: int
) -> None:
    facts = make_facts(num_train=num_train)
    assert Recipe.from_dict(DIGITS).completed(facts).further_teachers == further
    assert Recipe.from_dict(DIGITS | {"further_teachers": 1}).completed(facts).further_teachers == 1


def test_a_recipe_survives_json(make_facts: Callable[..., Facts]) -> None:
    completed = Recipe.from_dict(DIGITS).completed(make_facts())
    assert Recipe.from_dict(json.loads(completed.model_dump_json())) == completed


def test_changed_settings_are_those_given() -> None:
    recipe = Recipe.from_dict(DIGITS | {"seed": 3, "teacher": {"classifier": {"width": 8}}})
    changed = changed_settings(recipe)
    assert changed["seed"] == 3
    assert changed["teacher.classifier.width"] == 8
    assert not any(key.startswith(("student", "tuning", "compute")) for key in changed)


@pytest.mark.parametrize("text", ["1", "0.5", "true", '"word"', '["a", "b"]', "{ a = 1 }", "1e-3"])
def test_the_value_of_an_override_is_toml(text: str) -> None:
    values: dict[str, Any] = {}
    apply_override(values, f"a.b = {text}")
    assert values == tomllib.loads(f"[a]\nb = {text}")


@pytest.mark.parametrize("word", ["digits", "my_lab.nets", "/data/set one", "sampling", ""])
def test_a_bare_word_is_a_string(word: str) -> None:
    values: dict[str, Any] = {"a": {"c": 1}}
    apply_override(values, f"a.b={word}")
    assert values == {"a": {"b": word, "c": 1}}


@pytest.mark.parametrize("override", ["seed", "", "seed.deep=1"])
def test_an_override_that_cannot_be_applied_is_named(override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        apply_override({"seed": 0}, override)
    assert caught.value.where == f"--set {override}"


def test_a_file_is_loaded_with_its_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[data]\nkind = "digits"\n')
    recipe = Recipe.load(path, ["seed=4", "teacher.training.balance=loss"])
    assert (recipe.seed, recipe.teacher.training.balance) == (4, "loss")


@pytest.mark.parametrize("content", [None, b"[data", b"\xff\xfe"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert caught.value.where == path
    assert caught.value.next_step


def test_an_error_says_what_where_expected_got_next() -> None:
    error = KRError("broken", where="here", expected=1, got=2, next_step="mend it")
    lines = ["broken", "  where: here", "  expected: 1", "  got: 2", "  next: mend it"]
    assert str(error).splitlines() == lines
    assert str(KRError("broken")) == "broken"
