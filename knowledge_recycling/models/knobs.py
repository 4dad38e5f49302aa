"""Knobs: the sampling settings of a generator that tuning may turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Knobs = Mapping[str, float]
"""Knob values by name; a knob left out has its default."""


@dataclass(frozen=True)
class Knob:
    """One sampling setting: its default and the values worth trying."""

    default: float
    choices: tuple[float, ...]
    """In rising order, the default among them."""
    tuned: bool = True
    """Whether tuning turns it when the recipe does not name the knobs."""
