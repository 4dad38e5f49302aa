"""Files of a finished run truncated, emptied, changed by a bit, deleted, or of another run.

Whatever is done to a file, each command must either name it or say the same numbers as before.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import knowledge_recycling as kr
from benchmarks.kills import numbers, tiny_recipe, without_clock
from knowledge_recycling import pipeline
from knowledge_recycling.status import status_table

REWRITTEN = {"result.json", "recipe.json", "given.json", "report.html", "run.log"}
"""Files at the root that a run writes anew from its stages, and the log, which is only written."""


@dataclass(frozen=True)
class Finished:
    folder: Path
    recipe: kr.Recipe
    other: Path
    """Of another seed."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    home = tmp_path_factory.mktemp("runs")
    recipe = tiny_recipe(home)
    kr.run(recipe, home / "run")
    kr.run(tiny_recipe(home, seed=1), home / "other")
    return Finished(home / "run", recipe, home / "other")


@pytest.fixture
def copy(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pipeline, "write_report", lambda _: None)  # has a test of its own
    shutil.copytree(finished.folder, tmp_path / "run")
    return tmp_path / "run"


def flip(path: Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


HARMS: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "emptied": empty,
    "flipped early": partial(flip, position=0.1),
    "flipped late": partial(flip, position=0.8),
    "deleted": Path.unlink,
}
OTHER = "of another run"


def kinds(run: Path) -> dict[str, str]:
    """Returns one file of each kind: names that differ in digits only are of one kind."""
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return {re.sub(r"\d+", "N", name): name for name in names if name != ".lock"}


def run_again(finished: Finished, run: Path) -> Any:
    kr.run(finished.recipe, run)
    return numbers(run / "result.json")


def report(finished: Finished, run: Path) -> Any:
    page = kr.write_report(run, target=run.with_suffix(".html"))
    return page.read_text(encoding="utf-8")


def release(finished: Finished, run: Path) -> Any:
    """Returns the figures that a release would be decided by and show, without exporting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.bundles, "release", lambda _, result, *__: result)
        result: Any = pipeline.release(run, run / "bundle")
    return without_clock(result.model_dump(mode="json"))


def status(finished: Finished, run: Path) -> Any:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(status_table(run, pipeline.STAGE_NAMES))
    if "damaged" in capture.get():
        raise kr.RunError(capture.get())
    return [line for line in capture.get().splitlines() if "│" in line]  # below the folder's name


COMMANDS = {"run": run_again, "report": report, "release": release, "status": status}


@pytest.fixture(scope="module")
def expected(finished: Finished) -> dict[str, Any]:
    return {name: command(finished, finished.folder) for name, command in COMMANDS.items()}


def check(finished: Finished, expected: dict[str, Any], copy: Path, name: str, harm: str) -> None:
    """Damages a file of a copied run, gives every command, and repairs it."""
    whole = (finished.folder / name).read_bytes()
    if harm == OTHER and only_the_clock_differs(finished.other / name, whole):
        return
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for command, work in COMMANDS.items():
        if harm == OTHER:
            shutil.copy(finished.other / name, copy / name)
        else:
            HARMS[harm](copy / name)
        stage = name.split("/")[0]
        said, error = None, None
        try:
            said = work(finished, copy)
        except kr.KRError as raised:
            error = raised
        if error is not None:
            by_key = harm == OTHER and "another 'seed'" in error.what  # what the runs differ in
            named = str(copy / stage) in str(error) or by_key
            assert named, f"{command} does not name {name}: {error}"
            assert error.next_step or command == "status"
        else:
            assert name in REWRITTEN, f"{command} took {name} although {harm}"
            assert said == expected[command], f"{command} with {name} {harm}"
        (copy / name).write_bytes(whole)
        untouched = before.keys() - {copy / each for each in REWRITTEN}
        assert all(path.read_bytes() == before[path] for path in untouched)


def only_the_clock_differs(path: Path, whole: bytes) -> bool:
    """Returns whether a file is whole, or the record of the same work done at another time."""
    if not path.exists():
        return False
    if path.read_bytes() == whole or path.name != "done.json":
        return path.read_bytes() == whole
    return bool(numbers(path) == without_clock(json.loads(whole)))


def test_there_is_a_file_of_every_kind(finished: Finished) -> None:
    found = kinds(finished.folder)
    suffixes = {Path(name).suffix for name in found}
    assert suffixes == {".json", ".jsonl", ".safetensors", ".npz", ".html", ".log"}
    assert len(found) >= 25


@pytest.mark.parametrize("turn", range(6))
def test_one_harm_to_each_kind_of_file_is_named_or_harmless(
    finished: Finished, expected: dict[str, Any], copy: Path, turn: int
) -> None:
    harms = [*HARMS, OTHER]
    for number, name in enumerate(list(kinds(finished.folder).values())[turn::6]):
        check(finished, expected, copy, name, harms[(turn + number) % len(harms)])


@pytest.mark.slow
@pytest.mark.parametrize("harm", [*HARMS, OTHER])
def test_every_harm_to_each_kind_of_file_is_named_or_harmless(
    finished: Finished, expected: dict[str, Any], copy: Path, harm: str
) -> None:
    for name in kinds(finished.folder).values():
        check(finished, expected, copy, name, harm)


def test_the_result_of_another_run_is_not_reported(finished: Finished, copy: Path) -> None:
    shutil.copy(finished.other / "result.json", copy / "result.json")
    with pytest.raises(kr.RunError, match="other outputs"):
        kr.write_report(copy)


def test_what_is_redone_on_request_is_as_before(
    finished: Finished, expected: dict[str, Any], copy: Path
) -> None:
    flip(copy / "evaluation/quality.json", 0.5)
    with pytest.raises(kr.RunError, match=r"quality\.json") as caught:
        kr.run(finished.recipe, copy)
    assert "--redo evaluation" in str(caught.value.next_step)
    kr.run(finished.recipe, copy, redo="evaluation")
    assert numbers(copy / "result.json") == expected["run"]


def test_a_seal_shows_any_change_of_a_value(finished: Finished, copy: Path) -> None:
    values = json.loads((copy / "result.json").read_text())
    values["gap"]["accuracy_pp"] += 0.1
    (copy / "result.json").write_text(json.dumps(values))
    with pytest.raises(kr.RunError, match="cannot be read") as caught:
        kr.read_result(copy)
    assert "seal" in str(caught.value.got)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_space_the_run_says_so_and_goes_on_when_there_is_some(
    finished: Finished, expected: dict[str, Any], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "write_report", lambda _: None)
    run = disk / "run"
    kr.run(finished.recipe, run, until="teacher")
    before = contents(run / "teacher")
    used = int(subprocess.check_output(["du", "-sk", str(disk)]).split()[0])
    remount(disk, f"size={used + 64}k")
    with pytest.raises(kr.RunError, match="no space left") as caught:
        kr.run(finished.recipe, run)
    assert "free some space" in str(caught.value.next_step)
    assert contents(run / "teacher") == before
    assert not list(run.rglob(".*.part"))
    remount(disk, "size=64m")
    kr.run(finished.recipe, run)
    assert numbers(run / "result.json") == expected["run"]


def test_a_read_only_folder_is_named_and_stays_as_it_is(finished: Finished, disk: Path) -> None:
    run = disk / "run"
    shutil.copytree(finished.folder, run)
    before = contents(run)
    remount(disk, "ro")
    for command in (run_again, release):
        with pytest.raises(kr.RunError, match="cannot be written") as caught:
            command(finished, run)
        assert str(run) in str(caught.value.where)
    with pytest.raises(kr.RunError, match="cannot be written"):
        kr.write_report(run)
    assert status(finished, run) == status(finished, finished.folder)
    assert contents(run) == before
