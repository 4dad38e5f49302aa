"""The public names, checked against the package's own sources, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import knowledge_recycling as kr


def test_the_public_names_are_sorted_and_complete() -> None:
    tree = ast.parse(Path(kr.__file__).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names}
    assert kr.__all__ == sorted(kr.__all__)
    assert set(kr.__all__) == homes.keys() == kr._HOMES.keys()
    assert homes == {name: f"knowledge_recycling.{home}" for name, home in kr._HOMES.items()}


@pytest.mark.parametrize("name", kr.__all__)
def test_a_public_name_is_that_of_its_home_and_documented(name: str) -> None:
    home = importlib.import_module(f"knowledge_recycling.{kr._HOMES[name]}")
    assert getattr(kr, name) is getattr(home, name)
    assert getattr(kr, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kr.nothing  # noqa: B018


def test_importing_the_package_or_its_command_loads_no_heavy_library() -> None:
    code = (
        "import sys, knowledge_recycling, knowledge_recycling.cli;"
        "print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    heavy = ["torch", "numpy", "sklearn", "scipy", "matplotlib", "timm", "optuna", "pydantic"]
    command = [sys.executable, "-c", code, *heavy]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
