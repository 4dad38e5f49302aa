"""Train image classifiers on synthetic data from a private set, and measure what they give away.

>>> import knowledge_recycling as kr
>>> recipe = kr.Recipe.from_dict({"data": {"kind": "digits"}})
>>> recipe.generator.kind
'flow'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knowledge_recycling.errors import DataError, KRError, RecipeError, RunError
    from knowledge_recycling.pipeline import audit, release, run
    from knowledge_recycling.recipe import Recipe
    from knowledge_recycling.releasing.student import load
    from knowledge_recycling.reporting.reading import read_result
    from knowledge_recycling.reporting.report import write_report
    from knowledge_recycling.reporting.result import Result

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "KRError",
    "Recipe",
    "RecipeError",
    "Result",
    "RunError",
    "audit",
    "load",
    "read_result",
    "release",
    "run",
    "write_report",
]

_HOMES = {
    "DataError": "errors",
    "KRError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Result": "reporting.result",
    "RunError": "errors",
    "audit": "pipeline",
    "load": "releasing.student",
    "read_result": "reporting.reading",
    "release": "pipeline",
    "run": "pipeline",
    "write_report": "reporting.report",
}


def __getattr__(name: str) -> Any:
    # names are fetched when first used, so that importing the package does no work (PEP 562)
    if name not in _HOMES:
        raise AttributeError(f"module 'knowledge_recycling' has no attribute '{name}'")
    return getattr(importlib.import_module(f"knowledge_recycling.{_HOMES[name]}"), name)
