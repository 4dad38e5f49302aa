"""How far a run is and whether it is as it was written, read from its folder alone."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from knowledge_recycling.errors import RunError
from knowledge_recycling.reporting.reading import read_result
from knowledge_recycling.rundir import DONE, check_done, record_of
from knowledge_recycling.summary import RESULT


def status_table(run: Path, stages: tuple[str, ...]) -> Table:
    """Returns a table of the stages of a run: state, minutes, peak memory.

    Every output is compared with its digest; a file that is missing or changed is named.

    Raises:
        RunError: There is no run in the folder.
    """
    if not (run / "data").is_dir():
        raise RunError(
            "there is no run in this folder",
            where=run,
            next_step="start one with: kr run RECIPE --out FOLDER",
        )
    table = Table("stage", "state", "minutes", "peak MiB", title=Text(str(run)))
    for name in stages:
        table.add_row(name, *_row(run, name))
    if (run / RESULT).exists():
        try:
            read_result(run)
        except RunError as error:
            table.add_row(RESULT, _damage(error), "", "")
    return table


def _row(run: Path, stage: str) -> tuple[str | Text, str, str]:
    try:
        record = record_of(run / stage)
        if record is None:
            return "to do", "", ""
        if "outputs" in record:
            check_done(run / stage)
    except RunError as error:
        return _damage(error), "", ""
    state = "done" if "outputs" in record else _begun(run / stage)
    peak = record.get("peak_rss_mib")
    return state, f"{record['seconds'] / 60:.1f}", "" if peak is None else f"{peak:.0f}"


def _begun(folder: Path) -> str:
    """Returns how far a stage is that has parts, such as an audit's shadows."""
    parts = sum(1 for _ in folder.glob(f"*/{DONE}"))
    return f"begun, {parts} parts done" if parts else "begun"


def _damage(error: RunError) -> Text:
    return Text(f"damaged: {error.where}: {error.what}", overflow="fold")
