"""Writes docs/recipe.md and docs/result.md from the models they describe.

Run after a change of a Config or of the result: python docs/write_reference.py. A test compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from knowledge_recycling.config import Config, kind_module, known_kinds
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.reporting.result import Result

FAMILIES = {
    "data": "data.sources",
    "teacher.classifier": "models.classifiers",
    "generator": "models.generators",
    "student.classifier": "models.classifiers",
    "audit.yardsticks.dp.classifier": "models.classifiers",
}
"""Sections whose keys depend on their kind."""

RECIPE_HEAD = """# Every key of a recipe

Written from the code by `docs/write_reference.py`. A key left out has its default; *derived* means
that it follows from the set (`kr run RECIPE --dry-run` shows the values). Unknown keys are errors.
"""

RESULT_HEAD = """# `result.json`

Written from the code by `docs/write_reference.py`; schema "1". Fractions are in [0, 1], gaps in
percentage points (student minus teacher), `null` means "not measured".
"""


def recipe_page() -> str:
    """Returns the reference of the recipe."""
    return "\n".join([RECIPE_HEAD, *_sections(Recipe, ""), *_kinds()])


def result_page() -> str:
    """Returns the reference of `result.json`."""
    lines = [RESULT_HEAD]
    for model in _models(Result):
        lines += [f"## {model.__name__}", "", _one_line(model.__doc__), "", *_table(model), ""]
    return "\n".join(lines)


def _sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    own = {name: field for name, field in model.model_fields.items() if not _part(field)}
    plain = {name: field for name, field in own.items() if f"{prefix}{name}" not in FAMILIES}
    if plain:
        title = f"[{prefix.rstrip('.')}]" if prefix else "top level"
        yield from (f"## `{title}`", "", _one_line(model.__doc__), "", *_rows(plain), "")
    for name in (each for each in own if each not in plain):
        family = FAMILIES[f"{prefix}{name}"]
        yield from (f"## `[{prefix}{name}]`", "", f"See kinds of `{family}` below.", "")
    for name, field in model.model_fields.items():
        part = _part(field)
        if part is not None:
            yield from _sections(part, f"{prefix}{name}.")


def _kinds() -> Iterator[str]:
    for family in dict.fromkeys(FAMILIES.values()):
        for kind in known_kinds(family):
            model = kind_module(family, kind).Config
            yield from (f'## `{family}`: `kind = "{kind}"`', "", _one_line(model.__doc__), "")
            yield from (*_rows(model.model_fields), "")


def _part(field: FieldInfo) -> type[Config] | None:
    kind = field.annotation
    plugin = any("Validator" in type(each).__name__ for each in field.metadata)
    return kind if isinstance(kind, type) and issubclass(kind, Config) and not plugin else None


def _table(model: type[BaseModel]) -> list[str]:
    return _rows(model.model_fields)


def _rows(fields: dict[str, FieldInfo]) -> list[str]:
    cells = (
        (f"`{name}`", _type(field.annotation), _default(field), _one_line(field.description))
        for name, field in fields.items()
    )
    rows = [f"| {' | '.join(row)} |" for row in cells]
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return "none" if type(None) in get_args(field.annotation) else "*derived*"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _type(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin in (Union, UnionType):
        return " or ".join(_type(each) for each in inner if each is not type(None))
    if origin in (tuple, list):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"table of {_type(inner[1])}"
    return getattr(kind, "__name__", str(kind))


def _models(model: type[BaseModel], seen: dict[type[BaseModel], None] | None = None) -> Any:
    seen = {} if seen is None else seen
    if model not in seen:
        seen[model] = None
        for field in model.model_fields.values():
            for inner in _leaves(field.annotation):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    _models(inner, seen)
    return seen


def _leaves(kind: Any) -> Iterator[Any]:
    inner = get_args(kind)
    if not inner:
        yield kind
    for each in inner:
        yield from _leaves(each)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "recipe.md").write_text(recipe_page(), encoding="utf-8")
    (here / "result.md").write_text(result_page(), encoding="utf-8")
