"""Model card and data card in the form of the Hugging Face Hub, filled from the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from knowledge_recycling.releasing.gate import learners
from knowledge_recycling.reporting.result import Attack, Result, strongest
from knowledge_recycling.reporting.wording import FORMATS, verdict
from knowledge_recycling.storage import write_text

CARDS = {"MODEL_CARD.md": "model_card.md", "README.md": "data_card.md"}
"""File of the bundle: template. `README.md` is what the Hub shows of a data set."""


def write_cards(bundle: Path, result: Result, about: Mapping[str, Any]) -> None:
    """Writes the cards of the bundle."""
    environment = Environment(  # noqa: S701  (Markdown: values are quoted by `quoted` instead)
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FORMATS | {"quoted": quoted, "cell": cell}
    for name, template in CARDS.items():
        page = environment.get_template(template).render(
            result=result, about=about, verdict=verdict(result), found=strongest_attacks(result)
        )
        write_text(bundle / name, page)


@dataclass(frozen=True)
class Found:
    """What the strongest attack on a released target, or on the canaries in it, reached."""

    target: str
    name: str
    attack: Attack


def strongest_attacks(result: Result) -> list[Found]:
    """Returns the strongest attack on each target that is held to the release policy."""
    if result.audit is None:
        return []
    held = {*learners(result.audit), *result.generators}
    rows = []
    for target, attacks in result.privacy.items():
        name = strongest(attacks)
        if target.partition(", ")[0] in held and name is not None:
            rows.append(Found(target, name, attacks[name]))
    return rows


def quoted(text: str) -> str:
    """Returns the text as a YAML string in quotes, whatever is in it.

    >>> quoted("a: b")
    '"a: b"'
    """
    return json.dumps(text)


def cell(text: object) -> str:
    r"""Returns the text as it may stand in a Markdown table.

    >>> cell("a|b<c>")
    'a\\|b&lt;c&gt;'
    """
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return plain.replace(">", "&gt;").replace("|", "\\|")
