"""Recipe parts: the base of every `Config`, values derived from the image set, kinds by file name.

A field whose default is `DERIVED` takes a value that suits the set: `Config.completed` fills it in.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError

from knowledge_recycling.errors import RecipeError

DERIVED: Any = None
"""Default of a field that is derived from the set unless the recipe gives it."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What defaults may be derived from: the training set's size, shape and classes."""

    num_train: int
    num_val: int
    shape: tuple[int, int, int]
    """Channels, height and width."""
    num_classes: int
    smallest_class: int
    """Training images of the rarest class."""
    symmetries: tuple[str, ...]
    """Flips measured to keep the class (see `data.augment.measured_symmetries`)."""
    on_gpu: bool


class Config(BaseModel):
    """Base of all recipe parts: frozen, unknown keys are errors, field docstrings are the guide."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def derived(self, facts: Facts) -> dict[str, Any]:
        """Returns a value for each `DERIVED` field; those that the recipe gives are not used."""
        del facts
        return {}

    def completed(self, facts: Facts) -> Self:
        """Returns this config with the derived fields, here and in nested parts, filled in."""
        nested = {name: value.completed(facts) for name, value in self if isinstance(value, Config)}
        derived = {
            name: value
            for name, value in self.derived(facts).items()
            if getattr(self, name) is None
        }
        return self.model_copy(update=nested | derived)


class PluginConfig(Config):
    """Base of the `Config` of a kind: a generator, classifier, attack or data source."""

    kind: str
    """File name of the kind, or dotted name of a module of yours that has the same contract."""


ConfigT = TypeVar("ConfigT", bound=Config)


def validate(model: type[ConfigT], values: Mapping[str, Any], where: str = "") -> ConfigT:
    """Returns `values` as a `model`.

    Raises:
        RecipeError: For the first wrong key or value, with the nearest valid key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _recipe_error(model, error, where) from None


def _recipe_error(model: type[Config], error: ValidationError, where: str) -> RecipeError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(filter(None, [where, *path]))
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        return RecipeError(
            f"unknown recipe key '{key}'",
            where=key,
            expected=f"one of {', '.join(known)}",
            got=path[-1],
            next_step=did_you_mean(path[-1], known) or "remove the key",
        )
    return RecipeError(
        f"recipe key '{key}' has a wrong value",
        where=key,
        expected=first["msg"],
        got=repr(first["input"]),
        next_step="correct the value, or remove the key to use its default",
    )


def _fields_at(model: type[BaseModel], path: Iterable[str]) -> list[str]:
    for name in path:
        field = model.model_fields.get(name)
        annotation = field.annotation if field else None
        parts = (annotation, *get_args(annotation))  # the second for `Part | None`
        inner = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return sorted(model.model_fields)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Returns a suggestion of the nearest known word, or `None` where nothing is near.

    >>> did_you_mean("widht", ["width", "depth"])
    "did you mean 'width'?"
    """
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean '{nearest[0]}'?" if nearest else None


def known_kinds(family: str) -> list[str]:
    """Returns the kinds of a family (`models.generators`, `data.sources`...), i.e. its files."""
    package = importlib.import_module(f"knowledge_recycling.{family}")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def kind_module(family: str, kind: str) -> ModuleType:
    """Returns the module behind `kind`: a file of the family's folder or a user's own module.

    Raises:
        RecipeError: Neither exists, or the user's module fails to import.
    """
    known = known_kinds(family)
    name = f"knowledge_recycling.{family}.{kind}" if kind in known else kind
    if kind not in known and "." not in kind:
        raise RecipeError(
            f"unknown kind '{kind}'",
            where=family,
            expected=f"one of {', '.join(known)}, or the dotted name of a module of yours",
            got=kind,
            next_step=did_you_mean(kind, known),
        )
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(
            f"the module of kind '{kind}' cannot be imported",
            where=name,
            got=error,
            next_step="install what it needs, or correct the name",
        ) from error


def _plugin_resolver(family: str, section: str, default: str) -> Callable[[Any], Any]:
    def resolve(values: Any) -> Any:
        if values is None or isinstance(values, Config):
            return values
        if not isinstance(values, Mapping):
            raise RecipeError(
                f"'{section}' must be a table", where=section, expected="a table", got=repr(values)
            )
        kind = str(values.get("kind", default))
        config = getattr(kind_module(family, kind), "Config", None)
        if config is None:
            raise RecipeError(
                f"the module of kind '{kind}' has no Config",
                where=section,
                expected=f"what the modules of {family} have",
                got=kind,
                next_step="give the module a Config, or correct the name",
            )
        return validate(config, {**values, "kind": kind}, section)

    return resolve


def plugin(family: str, section: str, default: str) -> tuple[Any, ...]:
    """Returns the annotation metadata that turns a recipe table into the `Config` of its kind."""
    marker: Any = SerializeAsAny
    return BeforeValidator(_plugin_resolver(family, section, default)), marker()
