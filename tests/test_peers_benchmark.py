"""What the benchmark of peers counts and chooses, against what can be worked out by hand."""

from __future__ import annotations

import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.audit_peers import by_us, medians, simulated
from benchmarks.limit import with_generator
from benchmarks.peers import PEERS, entrants, speeds_of, with_ratios, work
from benchmarks.peers_env.home import Attempts
from knowledge_recycling import Recipe, RecipeError, pipeline
from knowledge_recycling.artefacts import Run, new_generator
from knowledge_recycling.data.splits import load_splits
from knowledge_recycling.progress import SilentReporter


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe.from_dict({"data": {"kind": "digits"}, "generator": {"width": 8}})
    folder = tmp_path_factory.mktemp("peers")
    return pipeline.prepare(recipe, load_splits(recipe.data), folder, SilentReporter())


def test_evaluations_are_counted(run: Run) -> None:
    """A midpoint step takes two evaluations, the last one a single one."""
    evaluations, flops = work(new_generator(run), {"steps": 4})
    assert evaluations == 7
    assert work(new_generator(run), {"steps": 2}) == (3, flops)


def dcgan_flops(width: int) -> int:
    """Of 8x8 grey images: from 200 numbers to 2x2, and twice to double the side."""
    linear = 200 * 2 * width * 2 * 2
    kernels = 4 * 4 * (2 * width * width * 2 * 2 + width * 1 * 4 * 4)
    return 2 * (linear + kernels)


def test_a_peer_is_the_narrowest_with_enough_operations(run: Run) -> None:
    wanted = dcgan_flops(48)
    found = list(entrants(run, PEERS["DCGAN"], wanted - 1))
    assert [each.generator.width for each in found] == [48, 48]
    assert {each.generator.layout for each in found} == {"channels-last", "contiguous"}
    assert [work(new_generator(each), {}) for each in found] == [(1, wanted)] * 2
    assert next(entrants(run, PEERS["DCGAN"], wanted + 1)).generator.width == 56


def test_another_generator_keeps_the_other_settings(run: Run) -> None:
    changed = with_generator(run, PEERS["DCGAN, 64 channels"], images_seen=640)
    assert changed.recipe.generator.kind == "benchmarks.peers_env.dcgan"
    assert changed.recipe.generator_training.images_seen == 640
    assert changed.recipe.student == run.recipe.student


def test_a_peer_that_is_not_installed_says_so(run: Run) -> None:
    with pytest.raises(RecipeError, match="cannot be imported"):
        next(entrants(run, {"kind": "benchmarks.peers_env.nobody"}, 1.0))


def test_a_peer_that_cannot_be_imported_leaves_ours(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.peers.PEERS", {"nobody": {"kind": "benchmarks.peers_env.no"}})
    attempt = Attempts()
    (speed,) = speeds_of(run, 1, attempt).values()
    assert speed.generator["kind"] == "flow"
    assert speed.training > 0
    assert list(attempt.failures) == ["nobody"]


def test_one_failure_leaves_the_other_figures() -> None:
    attempt = Attempts()
    figures = medians({"ours": lambda: 2.0, "peer": lambda: [][0]}, 3, attempt)
    assert figures == {"ours": 2.0}
    assert attempt.told() == "\npeer failed: IndexError: list index out of range"


def test_simulated_members_are_told_apart() -> None:
    signals = simulated(400, 15, 3)
    members = 8 - signals.mask("shadow_members").sum(axis=0) == 1  # half of 16 models, so of ours
    scores = by_us(signals)
    assert roc_auc_score(members, scores) > 0.6


def test_ratios_say_how_many_times_faster_ours_is() -> None:
    ours = {"MFLOP per evaluation": 100.0, "training images/s": 60.0, "sampling images/s": 40.0}
    peer = {"MFLOP per evaluation": 200.0, "training images/s": 20.0, "sampling images/s": 4.0}
    rows = {"ours (flow)": dict(ours), "peer": dict(peer), "real images": {"CAS, test": 90.0}}
    with_ratios(rows)
    assert rows["peer"]["ours / this, training"] == pytest.approx(3)
    assert rows["peer"]["ours / this, sampling"] == pytest.approx(10)
    assert rows["peer"]["the same, training per FLOP"] == pytest.approx(1.5)
    assert rows["real images"] == {"CAS, test": 90.0}
