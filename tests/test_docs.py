"""The reference pages equal what the models say, and every shipped recipe is valid."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from knowledge_recycling.recipe import Recipe
from knowledge_recycling.study.plan import Study

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["recipe", "result"])
def test_a_reference_page_is_up_to_date(page: str) -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/write_reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    written = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    assert getattr(reference, f"{page}_page")() == written


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_a_shipped_recipe_is_valid_and_states_its_promise(path: Path) -> None:
    Recipe.load(path)
    head = path.read_text(encoding="utf-8").split("\n[")[0]
    for word in ("command", "hardware", "time", "expected"):
        assert f"# {word}" in head, f"the head of {path.name} does not state: {word}"


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda p: p.stem)
def test_a_shipped_study_is_valid_and_says_how_to_start_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert list(Study.load(path).cells())
    assert f"# command   kr study studies/{path.name}" in path.read_text(encoding="utf-8")


def test_the_study_of_the_guide_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/study.md").read_text(encoding="utf-8")
    example = text.split("```toml\n")[1].split("```")[0]
    (tmp_path / "study.toml").write_text(example, encoding="utf-8")
    monkeypatch.chdir(ROOT)
    assert len(list(Study.load(tmp_path / "study.toml").cells())) == 2 * 3 * 3
