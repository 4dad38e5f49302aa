"""Prints the lowest versions that pyproject.toml allows, as constraints for pip.

    python tests/lowest.py [NAME ...]

Names are left out of the list: of `torch`, say, where its old builds cannot be had. Of two bounds
of one library, the package's and an extra's, the higher one counts.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

DEVELOPMENT = {"dev", "browser"}
"""Extras of tools, which need not be old."""


def lowest(without: set[str]) -> Iterator[str]:
    """Yields `name==version` for each lower bound of the package and its extras."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    bounds = set(project["dependencies"])
    bounds |= {each for extra in extras.keys() - DEVELOPMENT for each in extras[extra]}
    least: dict[str, str] = {}
    for bound in bounds:
        name, version = bound.split(">=")  # each has one lower bound and no upper one
        least[name] = max(least.get(name, version), version, key=numbers)
    for name in sorted(least.keys() - without):
        yield f"{name}=={least[name]}"


def numbers(version: str) -> list[int]:
    """Returns a version as numbers, which compare as versions do."""
    return [int(each) for each in version.split(".")]


if __name__ == "__main__":
    print("\n".join(lowest(set(sys.argv[1:]))))
