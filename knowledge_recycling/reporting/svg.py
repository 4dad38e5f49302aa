"""Figures as inline SVG: themed by the page they stand in, labelled for screen readers.

Colours are stand-ins that become the page's CSS variables, so one drawing serves light, dark and
print. The same drawing gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER, TEACHER, STUDENT, GENERATOR = (f"#00000{digit}" for digit in range(1, 8))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    TEACHER: "var(--teacher)",
    STUDENT: "var(--student)",
    GENERATOR: "var(--generator)",
}
_WIDTH = 4.6  # inches; with the font size below, text stays readable on a phone
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 10,
    "savefig.transparent": True,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
}
_PREAMBLE = re.compile(r'^.*?<svg[^>]*viewBox="([^"]*)"[^>]*>\s*<defs>.*?</defs>', re.DOTALL)
_TAG = re.compile(r"<[^<>]+>")
_STAND_IN = re.compile("|".join(_VARIABLES))
_ID = re.compile(r' id="([^"]+)"')
_REFERENCE = re.compile(r'#([\w.]+)[")]')

styled = mpl.rc_context(_STYLE)
"""Decorator of functions that draw: text and lines take their style when they are made."""


def new_figure(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Returns a figure of the report's width, `height` inches high, and its axes row by row."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def inline_svg(figure: Figure, label: str) -> Markup:
    """Returns the figure as an element to put into a page; all text inside it is escaped.

    Args:
        figure: Drawn with the colours of this module.
        label: What a screen reader says instead; it also salts the ids, so that two figures of a
            page never share one.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": label}), warnings.catch_warnings():
        # The browser draws the text, so a letter that matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format="svg", metadata=nothing)
    drawing = file.getvalue()
    preamble = _PREAMBLE.match(drawing)
    assert preamble
    referenced = set(_REFERENCE.findall(drawing))
    body = _TAG.sub(lambda tag: _themed(tag[0], referenced), drawing[preamble.end() :])
    opening = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(preamble[1], label)
    return opening + Markup(body)  # noqa: S704


def _themed(tag: str, referenced: set[str]) -> str:
    used = _ID.sub(lambda found: found[0] if found[1] in referenced else "", tag)
    return _STAND_IN.sub(lambda colour: _VARIABLES[colour[0]], used)
