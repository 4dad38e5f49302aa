"""Results read back: `result.json` of a run folder, checked against its schema and its stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from knowledge_recycling.errors import RunError
from knowledge_recycling.reporting.result import Result
from knowledge_recycling.rundir import DONE, output_digest
from knowledge_recycling.storage import unsealed


def read_result(run_folder: Path | str) -> Result:
    """Returns the result of a run.

    Raises:
        RunError: The folder or its `result.json` is missing, damaged, of another schema, or made
            from other outputs than those in the folder.
    """
    path = Path(run_folder) / "result.json"
    try:
        result = parse_result(unsealed(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise _missing(path) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "as a whole"
        raise _damaged(path, key, first["msg"]) from None
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, "as a whole", error) from None
    _check_stages(result, path.parent)
    return result


def _check_stages(result: Result, run_folder: Path) -> None:
    for name, digest in result.stages.items():
        folder = run_folder / name
        if (folder / DONE).exists() and output_digest(folder) != digest:
            raise RunError(
                "the result was made from other outputs than this run has",
                where=f"{run_folder / 'result.json'} and {folder / DONE}",
                expected=f"those of the stage '{name}', {output_digest(folder)}",
                got=digest,
                next_step="write it again with `kr run RECIPE --out RUN`",
            )


def parse_result(values: Mapping[str, Any]) -> Result:
    """Returns the JSON object `values` as a `Result`."""
    return Result.model_validate({**values, "schema_version": values.get("schema")})


def _missing(path: Path) -> RunError:
    return RunError(
        "the run has no result to report",
        where=path,
        expected="the result.json that a finished run writes",
        got="no such file" if path.parent.is_dir() else "no such run folder",
        next_step="finish the run with `kr run RECIPE --out RUN`, or correct the folder's name",
    )


def _damaged(path: Path, key: str, got: object) -> RunError:
    return RunError(
        "the run's result cannot be read",
        where=f"{path}: {key}",
        expected='a result.json with "schema": "1"',
        got=got,
        next_step="write it again with `kr run RECIPE --out RUN`",
    )
