"""A whole run with two processes per training, by the command line: stopped, killed, resumed.

It must end with the bits of an undisturbed run with two processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from benchmarks.kills import compared
from knowledge_recycling.compute import ComputeConfig, make_fabric
from knowledge_recycling.errors import DataError, RecipeError
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.stages import train_teacher
from knowledge_recycling.together import Errand, check_shares

ROOT = Path(__file__).parents[1]
LIMIT = 1800
"""Seconds until a command counts as hanging."""
RECIPE = """
compute = {accelerator = "cpu", precision = "32-true", threads = 1}
evaluation = {resamples = 100, quality_images = 60, grid_images = 2}

[data]
kind = "digits"

[teacher]
classifier = {width = 8, blocks = 1}
training = {images_seen = 960, batch_size = 32, snapshots = 2}

[generator]
width = 16

[generator_training]
images_seen = 9600
batch_size = 32
candidates = 2

[tuning]
trials = 1

[student]
training = {images_seen = 960, batch_size = 32, snapshots = 2}
"""


def test_a_batch_that_cannot_be_shared_equally_is_refused_in_words() -> None:
    check_shares(2, {"teacher.training.batch_size": 32})
    with pytest.raises(RecipeError, match="shared equally") as caught:
        check_shares(3, {"teacher.training.batch_size": 32})
    assert caught.value.where == "teacher.training.batch_size"
    assert "multiple of compute.devices, 3" in str(caught.value)


def test_more_processes_than_gpus_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RecipeError, match="fewer GPUs") as caught:
        make_fabric(ComputeConfig(devices=4))
    assert caught.value.expected == "at most 2"


def test_images_that_changed_under_way_are_refused(tmp_path: Path, fabric: Fabric) -> None:
    recipe = Recipe.from_dict({"data": {"kind": "digits"}})
    before = {"train": "of other images", "val": "", "test": ""}
    errand = Errand(train_teacher, tmp_path, tmp_path, recipe, before, 0, None)
    with pytest.raises(DataError, match="changed while the run was at work"):
        errand(fabric, SilentReporter())


class Command:
    """`kr run` with two processes, in a session of its own."""

    def __init__(self, recipe: Path, out: Path) -> None:
        command = [sys.executable, "-m", "knowledge_recycling.cli", "run", recipe, "--out", out]
        self.process = subprocess.Popen(
            [*map(str, command), "--set", "compute.devices=2"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, path: Path) -> None:
        end = time.monotonic() + LIMIT
        while not path.exists():
            assert self.process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)

    def ended(self) -> tuple[int, str]:
        try:
            _, said = self.process.communicate(timeout=LIMIT)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode, said

    def members(self) -> list[int]:
        """The processes that train: children of the server that is a child of the command."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            servers = children(self.process.pid)
            members = [each for server in servers for each in children(server)]
            if len(members) == 2:
                return members
            time.sleep(0.05)
        raise TimeoutError("no processes that train")


def fields(process: int) -> list[str]:
    """State, parent and more as the system tells them."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return ["Z", "0"]


def is_alive(process: int) -> bool:
    return fields(process)[0] != "Z"


def children(parent: int) -> list[int]:
    everyone = sorted(int(each.name) for each in Path("/proc").glob("[0-9]*"))
    return [each for each in everyone if is_alive(each) and fields(each)[1] == str(parent)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_run_of_two_processes_survives_signals_and_the_loss_of_one(tmp_path: Path) -> None:
    recipe = tmp_path / "digits.toml"
    recipe.write_text(RECIPE)
    straight, disturbed = tmp_path / "straight", tmp_path / "disturbed"
    assert Command(recipe, straight).ended()[0] == 0

    # Ctrl-C reaches all processes of a terminal.
    stopped = Command(recipe, disturbed)
    stopped.wait_for(disturbed / "generator/begun.json")
    stopped.members()
    os.killpg(stopped.process.pid, signal.SIGINT)
    code, said = stopped.ended()
    assert code == 75, said
    assert "Go on with: kr run" in said
    assert "Traceback" not in said
    assert (disturbed / "generator/scratch/state.safetensors").exists()

    bereft = Command(recipe, disturbed)
    os.kill(bereft.members()[1], signal.SIGKILL)
    code, said = bereft.ended()
    assert code == 2, said
    assert "one of the processes that train together was ended" in said
    assert "SIGKILL in process" in said
    assert "go on with the same command" in said
    assert "Traceback" not in said

    # Its death ends those that it had started.
    killed = Command(recipe, disturbed)
    members = killed.members()
    killed.process.kill()
    killed.process.communicate(timeout=LIMIT)
    end = time.monotonic() + LIMIT
    while any(map(is_alive, members)):
        assert time.monotonic() < end
        time.sleep(0.05)

    code, said = Command(recipe, disturbed).ended()
    assert code == 0, said
    assert compared(disturbed, straight) == []
