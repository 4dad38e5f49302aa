"""The reference pages equal what the models say, and every shipped recipe is valid."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from knowledge_recycling.recipe import Recipe

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
