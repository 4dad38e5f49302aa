"""A study from the plan to the table: `kr study` and its listing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from knowledge_recycling.progress import Reporter, SilentReporter
from knowledge_recycling.study.plan import Study
from knowledge_recycling.study.table import lines_of, markdown, write_table
from knowledge_recycling.study.work import perform_study, state_of


def run_study(study: Study, out: Path | str, *, reporter: Reporter | None = None) -> str:
    """Does all that is left of a study in the folder `out`; returns its table in Markdown.

    Args:
        study: The study.
        out: Its folder; the table is written anew whenever a set is done with a seed.
        reporter: Told of the progress; unset: nobody is.

    Raises:
        RunError: Another process works on the study, or its folder cannot be written.
        Interrupted: A signal asked to stop; the same call goes on.
    """
    out = Path(out)
    tell = partial(write_table, study, out=out)
    outcomes = perform_study(study, out, reporter or SilentReporter(), tell)
    return markdown(lines_of(study, outcomes))


def listing(study: Study, out: Path | str) -> str:
    """Returns a line for each cell: its set, seed and row, and whether it is done."""
    return "\n".join(
        f"{state_of(study, cell, Path(out)):6} {cell.set}, seed {cell.seed}: {cell.row.label}"
        for cell in study.cells()
    )
