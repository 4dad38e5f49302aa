"""Run folders: what is skipped, refused, resumed; checked by counting the work and the messages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knowledge_recycling.errors import RunError
from knowledge_recycling.interruption import Interrupted
from knowledge_recycling.rundir import (
    BEGUN,
    DONE,
    SCRATCH,
    check_done,
    locked,
    output_digest,
    perform,
    record_of,
)
from knowledge_recycling.storage import write_text

FINGERPRINT = {"seed": 0, "teacher.width": 16}


class Work:
    """Writes two outputs and a scratch file, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        write_text(folder / "weights", "learnt")
        write_text(folder / "part" / "score.json", "{}")
        write_text(folder / SCRATCH / "state", "half way")


@pytest.fixture
def done(tmp_path: Path) -> Path:
    perform(tmp_path / "teacher", FINGERPRINT, Work())
    return tmp_path / "teacher"


def test_the_same_fingerprint_is_skipped(done: Path) -> None:
    work = Work()
    perform(done, dict(reversed(FINGERPRINT.items())), work)
    assert work.times == 0


def test_a_finished_stage_has_a_record_of_outputs_and_no_scratch(done: Path) -> None:
    record = json.loads((done / DONE).read_text())
    assert record["fingerprint"] == FINGERPRINT
    assert set(record["outputs"]) == {"weights", "part/score.json"}
    assert record["seconds"] >= 0
    assert record["peak_rss_mib"] > 1
    assert {path.name for path in done.iterdir()} == {DONE, "weights", "part"}


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"seed": 1, "teacher.width": 16}, "seed"),
        ({"seed": 0, "teacher.width": 8}, "teacher.width"),
        ({"seed": 0}, "teacher.width"),
        (FINGERPRINT | {"teacher.blocks": 2}, "teacher.blocks"),
    ],
)
@pytest.mark.parametrize("state", ["done", "begun"])
def test_another_fingerprint_is_refused_by_the_changed_key(
    tmp_path: Path, changed: dict[str, Any], key: str, state: str
) -> None:
    folder = tmp_path / "teacher"

    def stop(_: Path) -> None:
        raise Interrupted

    if state == "done":
        perform(folder, FINGERPRINT, Work())
    else:
        with pytest.raises(Interrupted):
            perform(folder, FINGERPRINT, stop)
    work = Work()
    with pytest.raises(RunError, match=f"'{key}'") as caught:
        perform(folder, changed, work)
    assert work.times == 0
    assert caught.value.expected == FINGERPRINT.get(key)
    assert caught.value.got == changed.get(key)
    assert "--redo teacher" in str(caught.value.next_step)


def damage(path: Path) -> None:
    path.write_text("altered")


@pytest.mark.parametrize("name", ["weights", "part/score.json"])
@pytest.mark.parametrize("harm", [damage, Path.unlink])
def test_a_damaged_or_missing_output_is_named(
    done: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(done / name)
    with pytest.raises(RunError) as caught:
        perform(done, FINGERPRINT, Work())
    assert caught.value.where == done / name


def test_a_changed_output_changes_the_digest_that_later_stages_see(tmp_path: Path) -> None:
    digests = []
    for content in ("a", "a", "b"):
        folder = tmp_path / f"{len(digests)}" / "teacher"
        perform(folder, FINGERPRINT, lambda folder, c=content: write_text(folder / "weights", c))
        digests.append(output_digest(folder))
    assert digests[0] == digests[1] != digests[2]


def test_interrupted_work_goes_on_and_its_seconds_add_up(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    begun: list[bool] = []

    def work(folder: Path) -> None:
        begun.append((folder / SCRATCH / "state").exists())
        write_text(folder / SCRATCH / "state", "half way")
        time.sleep(0.05)
        if len(begun) < 3:
            raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            perform(folder, FINGERPRINT, work)
        assert not (folder / DONE).exists()
    halfway = record_of(folder)
    assert halfway is not None
    assert 0.1 <= halfway["seconds"] < 0.5
    assert "outputs" not in halfway
    perform(folder, FINGERPRINT, work)
    finished = record_of(folder)
    assert finished is not None
    assert finished["seconds"] >= halfway["seconds"] + 0.05
    assert begun == [False, True, True]
    assert not (folder / BEGUN).exists()


def test_a_failure_is_not_taken_for_success(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        perform(tmp_path / "teacher", FINGERPRINT, fail)
    work = Work()
    perform(tmp_path / "teacher", FINGERPRINT, work)
    assert work.times == 1


def test_nothing_is_known_of_a_stage_that_never_began(tmp_path: Path) -> None:
    assert record_of(tmp_path / "teacher") is None
    with pytest.raises(RunError, match="missing"):
        check_done(tmp_path / "teacher")


def test_a_second_lock_in_this_process_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_folder_that_another_process_holds_is_refused_until_it_ends(tmp_path: Path) -> None:
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(RunError, match="another process"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as caught, locked(tmp_path / "file" / "run"):
        pass
    assert caught.value.where == tmp_path / "file" / "run"
