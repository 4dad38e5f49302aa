"""How far a run is, read from its folder alone."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from knowledge_recycling.errors import RunError
from knowledge_recycling.rundir import record_of


def status_table(run: Path, stages: tuple[str, ...]) -> Table:
    """Returns a table of the stages of a run: state, minutes, peak memory.

    Raises:
        RunError: There is no run in the folder.
    """
    if not (run / "data").is_dir():
        raise RunError(
            "there is no run in this folder",
            where=run,
            next_step="start one with: kr run RECIPE --out FOLDER",
        )
    table = Table("stage", "state", "minutes", "peak MiB", title=str(run))
    for name in stages:
        record = record_of(run / name)
        table.add_row(name, *_row(record))
    return table


def _row(record: dict[str, object] | None) -> tuple[str, str, str]:
    if record is None:
        return "to do", "", ""
    state = "done" if "outputs" in record else "begun"
    minutes = float(str(record["seconds"])) / 60
    peak = record.get("peak_rss_mib")
    return state, f"{minutes:.1f}", "" if peak is None else f"{float(str(peak)):.0f}"
