"""Candidates scored by real clusters, a worker killed in the middle: the scores are those of here.

Ray and Dask run on this machine with two workers each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_end_to_end import KR, kr_command, stable, weights, write_recipe

from knowledge_recycling import choosing, clusters, pipeline
from knowledge_recycling.artefacts import Run, candidate_files
from knowledge_recycling.choosing import Question
from knowledge_recycling.clusters import Workers
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.errors import DataError, KRError, RunError
from knowledge_recycling.fanout import in_order
from knowledge_recycling.progress import SilentReporter
from knowledge_recycling.recipe import Recipe
from knowledge_recycling.recycling.scoring import Score

SHORT = [
    "teacher.training.images_seen=160",
    "generator_training.images_seen=320",
    "generator_training.candidates=4",
    "selection.training_share=1.0",
]
KINDS = [
    pytest.param("loky", marks=pytest.mark.slow),
    pytest.param("ray", marks=pytest.mark.cluster),
    pytest.param("dask", marks=pytest.mark.cluster),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a teacher and four candidates, none of them scored."""
    folder = tmp_path_factory.mktemp("clusters")
    recipe = Recipe.load(write_recipe(folder), SHORT)
    pipeline.run(recipe, folder / "run", until="generator")
    splits = load_splits(recipe.data)
    return pipeline.prepare(recipe, splits, folder / "run", SilentReporter())


@pytest.fixture(scope="module")
def ray() -> Iterator[Workers]:
    """Ray itself, started before the package would: it needs little memory here."""
    with pytest.MonkeyPatch.context() as changes:
        changes.setenv("RAY_USAGE_STATS_ENABLED", "0")  # nothing goes over the network
        changes.setenv("RAY_worker_niceness", "0")  # the machine may have other work to do
        changes.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where this module is
        library = pytest.importorskip("ray")
        library.init(
            address="local",
            num_cpus=2,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
        )
        try:
            yield Workers(2, 1, "ray")
        finally:
            library.shutdown()


@pytest.fixture(scope="module")
def dask() -> Iterator[Workers]:
    """A cluster of Dask that runs for itself, as one of several machines would."""
    library = pytest.importorskip("distributed")
    settings: dict[str, Any] = {"dashboard_address": None, "memory_limit": 0, "silence_logs": 50}
    with library.LocalCluster(n_workers=2, threads_per_worker=1, **settings) as cluster:
        try:
            yield Workers(2, 1, "dask", cluster.scheduler_address)
        finally:
            clusters.close_clusters()


@pytest.fixture(params=KINDS)
def workers(request: pytest.FixtureRequest) -> Workers:
    if request.param == "loky":
        return Workers(2, 1, "loky")
    found: Workers = request.getfixturevalue(request.param)
    return found


def questions_in(folder: Path, run: Run) -> list[Question]:
    return [
        Question(path, {}, folder / path.stem, {"part": path.stem}) for path in candidate_files(run)
    ]


def answered_or_killed(run: Run, question: Question) -> Score:
    """Answers; the worker of one candidate is killed once its training has begun."""
    mark = question.folder.with_suffix(".killed")

    def kill() -> None:
        while not (question.folder / "begun.json").exists():
            time.sleep(0.01)
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    if question.candidate == candidate_files(run)[1] and not mark.exists():
        threading.Thread(target=kill, daemon=True).start()
    return choosing.answered(run, question)


def measures(scores: list[Score]) -> list[Score]:
    return [replace(each, images_per_second=None) for each in scores]


def test_a_killed_worker_costs_no_part_and_changes_no_bit(
    run: Run, workers: Workers, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    alone = Workers(1, 1, "here")
    expected = in_order(partial(choosing.answered, run), questions_in(here, run), alone, here)
    work = partial(answered_or_killed, run.for_workers(workers))
    found = in_order(work, questions_in(there, run), workers, there)
    assert list(there.glob("*.killed")), "one was killed"
    assert measures(found) == measures(expected)
    assert weights(there) == weights(here)
    assert weights(here)


def fails(number: int) -> int:
    raise DataError("no such number", got=number)


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["ray", "dask"])
def test_an_error_of_a_part_arrives_as_it_was(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no such number") as caught:
        in_order(fails, [3, 3, 3], request.getfixturevalue(name), tmp_path)
    assert caught.value.got == 3


def dies(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["ray", "dask"])
def test_a_part_that_kills_every_worker_ends_the_run(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="keep dying"):
        in_order(dies, [1], request.getfixturevalue(name), tmp_path)


@pytest.fixture(scope="module")
def straight(run: Run) -> Path:
    """The whole run, done by one process."""
    out = run.folder.parent / "straight"
    pipeline.run(Recipe.load(run.folder.parent / "tiny.toml", SHORT), out)
    return out


def command(run: Run, out: Path, backend: str) -> list[str]:
    changes = [each for change in SHORT for each in ("--set", change)]
    recipe = run.folder.parent / "tiny.toml"
    asked = ["--backend", backend, "--workers", "2"]
    return ["run", str(recipe), "--out", str(out), "-q", *changes, *asked]


@pytest.mark.parametrize("backend", KINDS)
def test_the_command_line_shares_the_parts_of_a_run_out(
    backend: str, run: Run, straight: Path, tmp_path: Path
) -> None:
    process = kr_command(*command(run, tmp_path / "run", backend))
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert weights(tmp_path / "run") == weights(straight)
    assert stable(tmp_path / "run") == stable(straight)


@pytest.mark.parametrize("backend", KINDS)
def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(
    backend: str, run: Run, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*KR, *command(run, out, backend)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not list(out.glob("candidates/*/begun.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 75, said
    assert "Go on with: kr run" in said
    assert "Traceback" not in said
    pipeline.run(Recipe.load(run.folder.parent / "tiny.toml", SHORT), out)
    assert weights(out) == weights(straight)
    assert stable(out) == stable(straight)


@pytest.mark.cluster
def test_a_cluster_that_is_not_there_is_a_clear_error(
    tmp_path: Path,
) -> None:
    pytest.importorskip("distributed")
    with (
        pytest.importorskip("dask").config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(RunError, match="no cluster") as caught,
    ):
        in_order(fails, [1], Workers(2, 1, "dask", "tcp://127.0.0.1:1"), tmp_path)
    assert "tcp://127.0.0.1:1" in str(caught.value)


@pytest.mark.parametrize(("backend", "module"), [("ray", "ray"), ("dask", "distributed")])
def test_a_missing_library_is_one_line_that_says_what_to_install(
    backend: Any, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(KRError) as caught:
        in_order(fails, [1, 2], Workers(2, 1, backend, pool=2), tmp_path)
    assert str(caught.value).count("\n") == 0
    assert f"pip install 'knowledge-recycling[{backend}]'" in str(caught.value)
