"""The page: read back with the standard library's HTML parser, its images with Pillow.

A marker planted in the real images must be found in the internal page, which shows that the search
works, and nowhere in the public one.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from knowledge_recycling.errors import RunError
from knowledge_recycling.reporting.report import write_report

Values = dict[str, Any]
MakeRun = Callable[[Values], Path]
VOID = {"meta", "link", "img", "input", "br", "hr"}
MARKER = np.random.default_rng(7).integers(0, 256, size=(8, 8), dtype=np.uint8)


class Page(HTMLParser):
    """Tags with their attributes, and all text, of a page whose tags are well nested."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def attributes(self, *names: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags for name in names if name in attrs]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def images(self) -> list[np.ndarray]:
        found = re.findall(r"data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)", self.source)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def contains(picture: np.ndarray, pattern: np.ndarray) -> bool:
    """Whether any channel of `picture` [H, W, C] holds `pattern` anywhere."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, pattern.shape, axis=(0, 1))
    return bool((windows == pattern).all(axis=(-2, -1)).any())


def small(values: Values) -> Values:
    """The same run without what takes long to draw."""
    for who in ("teacher", "student"):
        values[who]["test"] |= {"recall": [], "confusion": [], "reliability": []}
    return values | {"candidates": [], "tuning": []}


def bare(values: Values) -> Values:
    """The least that a result may hold."""
    kept = ("schema", "dataset", "profile", "seed")
    return {key: values[key] for key in kept} | {"teacher": {}, "student": {}, "gap": {}}


def test_the_internal_page_shows_the_whole_run(internal_page: Path, result: Values) -> None:
    page = Page(internal_page)
    assert len(page.source) < 8 * 2**20
    assert "INTERNAL: contains real images" in page.text
    given_up = "full student: given up after 9,000 images"
    for said in ("not audited", "candidate-08", "loss is not finite", "out of memory", given_up):
        assert said in page.text
    for key, value in result["versions"].items():
        assert f"{key} {value}" in page.text
    for expected in (*result["digests"].values(), *result["changed_settings"], *result["quality"]):
        assert expected.replace("_", " ").lower() in page.text.replace("_", " ").lower()
    for role in ("teacher", "student"):
        for split in ("test", "val"):
            measure = result[role][split]["accuracy"]
            low, high = (f"{100 * measure[end]:.1f}" for end in ("low", "high"))
            assert f"{100 * measure['value']:.1f} {low}\u2013{high}" in page.text
    assert "distilled from 7 to 2" in page.text
    assert page.count("img") == 20
    assert page.count("svg") == 13


def test_a_distilled_sampler_that_was_too_far_is_said_to_be(
    make_run: MakeRun, result: Values
) -> None:
    result["accelerated"][0] |= {"distance": 0.4, "used": False}
    text = Page(write_report(make_run(small(result)))).text
    assert "7; distilled from 7 to 2, 0.4 standard deviations apart, too far to be used" in text


def test_the_page_stands_alone_and_can_be_read_without_eyes(internal_page: Path) -> None:
    page = Page(internal_page)
    assert page.count("script") == page.count("iframe") == page.count("object") == 0
    for address in page.attributes("src", "href", "xlink:href", "action", "srcset"):
        assert address.startswith(("data:", "#"))
    assert not re.search(r"@import|url\((?!#)|https?://", page.source)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {each[1:] for each in page.attributes("href") if each.startswith("#")} <= set(ids)
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    assert ("html", {"lang": "en"}) in page.tags


@pytest.mark.parametrize("reduced", [False, True], ids=["as they are", "reduced"])
def test_the_public_page_holds_no_real_image(
    make_run: MakeRun, result: Values, reduced: bool
) -> None:
    run = make_run(small(result))
    path = run / "evaluation" / "samples.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    side = 400 if reduced else 8  # large enough that the grids must be made smaller
    real = np.full((10, 10, 1, side, side), MARKER[0, 0])
    real[..., -8:, -8:] = MARKER
    np.savez(path, real=real, synthetic=arrays["synthetic"])
    internal, public = Page(write_report(run)), Page(write_report(run, public=True))

    assert len(internal.images()) == 20
    if not reduced:
        assert sum(contains(each, MARKER) for each in internal.images()) == 10
    assert len(public.images()) == 10
    for shown, expected in zip(public.images(), arrays["synthetic"], strict=True):
        assert not contains(shown, MARKER)
        assert shown.shape == (2 * 8 + 1, 5 * 8 + 4, 2)
        np.testing.assert_array_equal(shown[:8, :8, 0], expected[0, 0])
    assert MARKER.tobytes() not in (run / "report-public.html").read_bytes()
    assert "INTERNAL" not in public.source
    assert "radio" not in public.source


def test_the_public_page_names_no_file(make_run: MakeRun, result: Values) -> None:
    result["candidates"][2]["failure"] = "cannot open /home/someone/scans/0007.png"
    run = make_run(small(result) | {"candidates": result["candidates"][2:3]})
    assert "someone" in write_report(str(run)).read_text()
    public = write_report(run, public=True)
    assert public == run / "report-public.html"
    assert "someone" not in public.read_text()
    assert str(run) not in public.read_text()


def test_every_value_is_escaped(make_run: MakeRun, result: Values) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onload='alert(3)' {{ 7 * 6 }}"

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(each) for key, each in value.items()}
        if isinstance(value, list):
            return [poisoned(each) for each in value]
        return attack if isinstance(value, str) and value != "1" else value

    result = poisoned(result)
    for key in ("changed_settings", "versions", "digests", "quality"):
        result[key] = {attack: attack}
    result["dataset"]["classes"] = [f"{attack}{index}" for index in range(10)]
    result["tuning"][0]["knobs"][attack] = attack
    result["cost"]["seconds"] = {attack: 1.0}
    result["privacy"] = {attack: {attack: {"auc": 0.5, "tpr_at_fpr": {"0.1": 0.2}}}}
    page = Page(write_report(make_run(result)))
    assert page.count("script") == 0
    assert page.count("img") == 20
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count(attack) > 20


def test_names_that_are_no_text_are_survived(make_run: MakeRun, result: Values) -> None:
    result["dataset"]["classes"] = ["\udcff", "\x00", "\u202e", "\u80ba", *"efghij"]
    page = Page(write_report(make_run(small(result))))
    assert "\u80ba" in page.text


def test_every_generator_is_shown_with_what_was_chosen(make_run: MakeRun, result: Values) -> None:
    chosen = {"candidate": "candidate-05", "knobs": {"guidance": 1.5}}
    tried = {key: result[key] for key in ("candidates", "tuning")}
    further = {"second": {"kind": "biggan", "chosen": chosen, **tried}}
    page = Page(write_report(make_run(small(result) | {"further_generators": further})))
    assert "The generator second (biggan) draws as many images: candidate-05" in page.text
    assert "All candidates of second" in page.text
    assert "loss is not finite" in page.text


@pytest.mark.parametrize("several", [False, True])
def test_several_teachers_have_a_column_of_their_own(
    make_run: MakeRun, result: Values, several: bool
) -> None:
    values = small(result)
    values["ensemble"] = values["student"] if several else None
    page = Page(write_report(make_run(values))).text
    assert ("Teachers together" in page) == several
    assert f"answers as its {'teachers do together' if several else 'Teacher does'}" in page


def test_what_is_missing_is_said(make_run: MakeRun, result: Values) -> None:
    run = make_run(bare(result))
    for path in [*run.rglob("*.jsonl"), *run.rglob("*.npz")]:
        path.unlink()
    page = Page(write_report(run))
    for said in (
        "compared no candidates",
        "tuned no knobs",
        "no sample images",
        "measured no quality",
        "Not audited",
        "No training log of the Generator",
        "every setting has its default",
        "did not measure its time",
        "no further rows",
    ):
        assert said in page.text
    assert page.count("svg") == 1


def test_a_class_without_test_images_has_no_recall(make_run: MakeRun, result: Values) -> None:
    recalls = result["student"]["test"]["recall"]
    result = small(result)
    result["student"]["test"]["recall"] = [None, *recalls[1:]]
    result["teacher"]["test"]["recall"] = recalls
    page = Page(write_report(make_run(result)))
    first = recalls[0]
    low, high = (f"{100 * first[end]:.1f}" for end in ("low", "high"))
    assert f"digit 0 126 18 36 {100 * first['value']:.1f} {low}\u2013{high} \u2013 2" in page.text


def test_an_audit_is_shown_attack_by_attack(make_run: MakeRun, result: Values) -> None:
    rates = {"0.1": 0.15, "0.01": 0.031, "0.001": None}
    result["privacy"] = {
        "student": {"rmia": {"auc": 0.571, "tpr_at_fpr": rates, "ci95": {"auc": [0.55, 0.59]}}}
    }
    page = Page(write_report(make_run(small(result))))
    assert "at 10.0 % at 1.0 % at 0.1 %" in page.text
    assert re.search(
        r"student rmia \(strongest\) 0\.571 0\.55\u20130\.59 15\.0 3\.1 \u2013", page.text
    )
    assert "leaks at least" in page.text


def test_the_declared_and_the_strongest_attack_come_first(
    make_run: MakeRun, result: Values
) -> None:
    attacks = {name: {"auc": auc} for name, auc in (("loss", 0.6), ("lira", 0.55), ("rmia", 0.52))}
    result["privacy"] = {"student": attacks}
    result["audit"] = {
        "mode": "pipeline",
        "shadows": 16,
        "failed_shadows": 1,
        "images": 1234,
        "held_fixed": ["knobs"],
        "primary_attack": "lira",
        "sanity_training_accuracy": 0.991,
    }
    page = Page(write_report(make_run(small(result))))
    first, rest = page.text.split("All other attacks", 1)
    assert re.search(r"student loss \(strongest\) 0\.6", first)
    assert re.search(r"student lira 0\.55", first)
    assert re.search(r"student rmia 0\.52", rest)
    assert "16 shadows, each a re-run of the whole pipeline" in first
    assert "1 more failed" in first
    assert "99.1 %" in first


def test_yardsticks_have_a_table_and_their_attacks_stand_apart(
    make_run: MakeRun, result: Values
) -> None:
    classes = result["dataset"]["classes"]
    measure = {"value": 0.8, "low": 0.75, "high": 0.85}
    names = ("random guess", "student", "DP-SGD with epsilon 8")
    rows = [{"name": name, "accuracy": measure, "auc": 0.6, "aop": 0.55} for name in names]
    rows[2] |= {"epsilon": 7.98, "delta": 1e-4}
    attack = {"auc": 0.6, "ci95": {"auc": [0.55, 0.65]}}
    result["privacy"] = {name: {"lira": {"auc": 0.61}} for name in names[1:]}
    result["audit"] = {
        "mode": "pipeline",
        "shadows": 16,
        "images": 1234,
        "primary_attack": "lira",
        "yardsticks": rows,
        "epsilon_at_least": {"student": 0.37},
        "epsilon_delta": 1e-4,
        "epsilon_confidence": 0.95,
        "by_class": {"student": [attack] + [None] * (len(classes) - 1)},
        "roc": {"student": {"fpr": [0.01, 1.0], "tpr": [0.02, 1.0]}},
    }
    page = Page(write_report(make_run(result)))
    assert re.search(r"2 student 80\.0 75\.0\u201385\.0 .* 0\.6 .* 0\.55 none 0\.37", page.text)
    assert re.search(r"\u03b5\s7\.98, \u03b4\s0\.0001", page.text)
    first, rest = page.text.split("All other attacks", 1)
    assert "student lira (strongest) 0.61" in first
    assert "DP-SGD with epsilon 8 lira (strongest) 0.61" in rest
    assert re.search(rf"{re.escape(classes[0])} 0\.6 0\.55\u20130\.65", rest)


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun, result: Values) -> None:
    run = make_run(bare(result))
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    make_run: MakeRun, result: Values, tmp_path: Path
) -> None:
    run = make_run(bare(result))
    occupied = tmp_path / "occupied.html"
    (occupied / "within").mkdir(parents=True)
    with pytest.raises(RunError):
        write_report(run, target=occupied)
    assert [each.name for each in tmp_path.iterdir() if "part" in each.name] == []
    assert write_report(run, target=tmp_path / "page.html") == tmp_path / "page.html"


@pytest.mark.parametrize("line", ['{"images_seen": 1, "lo', '{"loss": 1.0}', "7"])
def test_a_damaged_log_is_named(make_run: MakeRun, result: Values, line: str) -> None:
    run = make_run(bare(result))
    with (run / "student" / "metrics.jsonl").open("a") as log:
        log.write(line)
    with pytest.raises(RunError, match="training log") as caught:
        write_report(run)
    assert "student" in str(caught.value.where)
