"""How long a run takes: the images counted beforehand are those that a real run reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_end_to_end import kr_command, write_recipe

import knowledge_recycling as kr
from knowledge_recycling import pipeline, timing
from knowledge_recycling.auditing import pool_of
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.progress import Advance, SilentReporter
from knowledge_recycling.shadows import Order, fulfil

WHOLE = ["selection.finalists=1", "tuning.trials=3", "tuning.knobs=['latent_std', 'hard_weight']"]
TWO = ["further_generators.other.kind=flow", "further_generators.other.width=16"]


class Listener(SilentReporter):
    """Adds up what each stage says that it is about to do."""

    def __init__(self) -> None:
        self.now = ""
        self.learnt: dict[str, int] = defaultdict(int)
        self.drawn: dict[str, int] = defaultdict(int)

    def stage(self, name: str) -> None:
        self.now = name

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Advance]:
        counted = self.drawn if label == "sampling" else self.learnt
        counted[self.now] += total
        yield lambda _: None


@pytest.mark.parametrize(
    "settings",
    [WHOLE, pytest.param([*WHOLE, *TWO], marks=pytest.mark.slow)],
    ids=["one generator", "two"],
)
def test_the_images_counted_are_those_of_a_real_run(tmp_path: Path, settings: list[str]) -> None:
    recipe = kr.Recipe.load(write_recipe(tmp_path), settings)
    listener = Listener()
    kr.run(recipe, tmp_path / "run", reporter=listener)
    with timing.prepared(recipe, load_splits(recipe.data)) as run:
        works = timing.work_of(run)
    seconds = dict.fromkeys({part for work in works.values() for part in work}, 0.5)
    for name, work in works.items():
        stage = timing.time_of(name, work, seconds)
        assert stage.learnt == listener.learnt[name], name
        assert stage.drawn == listener.drawn[name], name
        assert stage.seconds == 0.5 * sum(work.values())
    assert listener.learnt["teacher"] == 1600


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pipeline", "classifier"])
def test_the_images_counted_for_an_audit_are_those_of_its_shadows(
    tmp_path: Path, mode: str
) -> None:
    settings = [*WHOLE, "audit.shadows=8", f"audit.mode={mode}", "audit.selection=repeated"]
    recipe = kr.Recipe.load(write_recipe(tmp_path), [*settings, "audit.yardsticks.dp.epsilons=[]"])
    listener = Listener()
    run = pipeline.prepare(recipe, load_splits(recipe.data), tmp_path / "run", listener)
    planted, members = pool_of(run)
    order = Order(run, planted.pool, members[0], 0, tmp_path / "shadow")
    assert fulfil(order).failure is None
    work = timing.work_of(run)["audit"]
    stage = timing.time_of("audit", work, dict.fromkeys(work, 0.5))
    assert stage.learnt == 8 * sum(listener.learnt.values())
    assert stage.drawn == 8 * sum(listener.drawn.values())


def test_a_call_is_timed_by_the_clock_and_the_first_left_out() -> None:
    now, costs = [0.0], iter([100.0, *[0.25] * 9])

    def call() -> None:
        now[0] += next(costs)

    assert timing.seconds_of(call, lambda: now[0], least=0.9) == 0.25
    assert now[0] == 101.0


@pytest.mark.slow
def test_check_says_how_long_a_run_takes(tmp_path: Path) -> None:
    long = ["--set", "student.training.images_seen=2_000_000"]  # minutes have one decimal
    recipe = write_recipe(tmp_path)
    done = kr_command("check", recipe, "--minutes", "--set", "compute.threads=1", *long)
    assert done.returncode == 0, done.stderr
    assert "with 1 thread, 32-true" in done.stdout
    rows = [line.split("│") for line in done.stdout.splitlines() if line.startswith("│")]
    table = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows}
    assert table["teacher"][0] == "1,600"
    minutes = {name: float(table[name][-1]) for name in ("teacher", "generator", "student", "all")}
    assert minutes["all"] >= max(minutes.values()) > 0
