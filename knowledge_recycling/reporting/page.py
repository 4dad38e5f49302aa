"""Templates of the folder to pages: every value escaped, none silently missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from knowledge_recycling.reporting.wording import FORMATS


def render(template: str, values: Mapping[str, Any]) -> str:
    """Returns the page of a template of this folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FORMATS
    page = environment.get_template(template).render(values)
    # Names of folders may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    return page.encode("utf-8", "replace").decode("utf-8")
