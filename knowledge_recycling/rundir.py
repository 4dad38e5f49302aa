"""The run folder is the database: one folder per stage or part, `done.json` written last.

A stage runs when it has no `done.json`. It is skipped when its fingerprint (recipe slice, inputs,
stage version) and the digests of its outputs are as recorded, and refused otherwise: a result is
never silently reused and never silently redone. Records carry a digest of themselves.
"""

from __future__ import annotations

import fcntl
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from knowledge_recycling.errors import RunError
from knowledge_recycling.storage import (
    UNFINISHED,
    file_digest,
    read_sealed,
    value_digest,
    write_sealed,
)

Fingerprint = Mapping[str, Any]
"""Dotted names to JSON values: all that a stage's outputs depend on."""

DONE = "done.json"
BEGUN = "begun.json"
SCRATCH = "scratch"
"""Folder of a stage for files that are needed only while it runs."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run folder for this process.

    Raises:
        RunError: Another process holds it, or the folder cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / ".lock").open("w")
    except OSError as error:
        raise RunError(
            "the run folder cannot be written",
            where=run,
            got=error.strerror,
            next_step="choose another folder with --out",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                "another process works on this run folder",
                where=run,
                next_step="wait for it to end, or choose another folder with --out",
            ) from None
        for unfinished in run.rglob(f".*{UNFINISHED}"):  # of a process that was killed
            unfinished.unlink()
        yield


def perform(folder: Path, fingerprint: Fingerprint, work: Callable[[Path], None]) -> None:
    """Makes sure that `work(folder)` has been done for `fingerprint`, resuming it if begun.

    Raises:
        RunError: The folder holds the work of another fingerprint, damaged outputs, or work
            without a record.
    """
    if (folder / DONE).exists():
        check_done(folder, fingerprint)
        return
    seconds = 0.0
    if (folder / BEGUN).exists():
        begun = read_sealed(folder / BEGUN, _redo(folder))
        _check_fingerprint(folder, begun["fingerprint"], fingerprint)
        seconds = begun["seconds"]
    else:
        _check_untouched(folder)
    record = {"fingerprint": dict(fingerprint), "seconds": seconds}
    write_sealed(folder / BEGUN, record)
    start = time.monotonic()
    try:
        work(folder)
    finally:
        record["seconds"] = seconds + time.monotonic() - start
        record["peak_rss_mib"] = peak_rss_mib()
        with suppress(RunError):  # a full disk must not hide the error that matters
            write_sealed(folder / BEGUN, record)
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    write_sealed(folder / DONE, record | {"outputs": _digests(folder)})
    (folder / BEGUN).unlink()


def check_done(folder: Path, fingerprint: Fingerprint | None = None) -> None:
    """Checks a finished stage against its record.

    Raises:
        RunError: It was made by other settings or inputs, or an output is missing or changed.
    """
    record = read_sealed(folder / DONE, _redo(folder))
    if fingerprint is not None:
        _check_fingerprint(folder, record["fingerprint"], fingerprint)
    present = _digests(folder)
    for name, digest in record["outputs"].items():
        if present.get(name) != digest:
            raise RunError(
                "an output of a finished stage is missing or changed",
                where=folder / name,
                expected=f"SHA-256 {digest}",
                got=present.get(name, "no such file"),
                next_step=_redo(folder),
            )


def output_digest(folder: Path) -> str:
    """Returns one digest of all outputs of a finished stage: what later stages depend on."""
    return value_digest(read_sealed(folder / DONE, _redo(folder))["outputs"])


def record_of(folder: Path) -> dict[str, Any] | None:
    """Returns what is known of a stage: seconds worked over all its sessions, peak memory...

    `None` if it never began; a record has `outputs` only if the stage is done.

    Raises:
        RunError: The record is damaged, or missing although the stage has outputs.
    """
    record = next((folder / name for name in (DONE, BEGUN) if (folder / name).exists()), None)
    if record is None:
        _check_untouched(folder)
        return None
    return read_sealed(record, _redo(folder))


def _check_untouched(folder: Path) -> None:
    if any(_outputs(folder)):
        raise RunError(
            "the record of a stage is missing",
            where=folder / DONE,
            expected="the record, since the stage has outputs",
            got="no such file",
            next_step=_redo(folder),
        )


def peak_rss_mib() -> float:
    """Returns the largest memory this process has held so far."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**20 if sys.platform == "darwin" else 2**10)


def flattened(prefix: str, value: Any) -> dict[str, Any]:
    """Returns nested mappings as dotted keys, so that a changed key can be named.

    >>> flattened("a", {"b": {"c": 1}, "d": [2]})
    {'a.b.c': 1, 'a.d': [2]}
    """
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        key: leaf
        for name, inner in value.items()
        for key, leaf in flattened(f"{prefix}.{name}", inner).items()
    }


def differing_key(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Returns the first key, in their order, whose values differ; `None` if there is none.

    >>> differing_key({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4})
    'b'
    """
    keys = sorted(recorded.keys() | wanted.keys())
    return next((key for key in keys if recorded.get(key) != wanted.get(key)), None)


def _check_fingerprint(folder: Path, recorded: Fingerprint, wanted: Fingerprint) -> None:
    key = differing_key(recorded, wanted)
    if key is not None:
        raise RunError(
            f"the stage '{folder.name}' was made with another '{key}'",
            where=folder,
            expected=recorded.get(key),
            got=wanted.get(key),
            next_step=f"{_redo(folder)}; or start a new run with another --out",
        )


def _redo(folder: Path) -> str:
    if (folder.parent / BEGUN).exists() or (folder.parent / DONE).exists():  # a part of a stage
        folder = folder.parent
    return f"redo it and all that depends on it: kr run RECIPE --redo {folder.name}"


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in _outputs(folder)}


def _outputs(folder: Path) -> list[Path]:
    """Returns every file but the folder's own record; records of parts count."""
    own = (folder / DONE, folder / BEGUN)
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path not in own and not path.name.endswith(UNFINISHED)
    ]
