"""The page in a real browser: headless Chromium, through Playwright, on phone and desktop.

Nothing may go to the console or the network, every figure must be seen, and the switch must work
from the keyboard. Screenshots of each size and colour scheme stay in pytest's temporary folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from knowledge_recycling.reporting.comparison import write_comparison

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CLIPPED = """
    element => [...element.querySelectorAll('svg text')].filter(text => {
        const box = text.getBoundingClientRect();
        return box.left < 0 || box.right > innerWidth;
    }).map(text => text.textContent)
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser Chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(params=[400, 1400], ids=["phone", "desktop"])
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(browser: Any, width: int, scheme: str) -> Iterator[Callable[[Path], Any]]:
    """Opens a file; fails afterwards on any console message or request outside it."""
    pages, complaints, own = [], [], []

    def open_file(path: Path) -> Any:
        size = {"width": width, "height": 900}
        page = browser.new_page(viewport=size, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        own.append(path.as_uri())
        return page

    yield open_file
    for page in pages:
        page.close()
    assert [each for each in complaints if not each.startswith(("data:", *own))] == []


@pytest.fixture
def page(opened: Callable[[Path], Any], internal_page: Path) -> Any:
    """The internal report."""
    return opened(internal_page)


def test_every_figure_is_seen_and_nothing_overflows(
    page: Any, width: int, scheme: str, tmp_path: Path
) -> None:
    page.screenshot(path=tmp_path / f"report-{width}-{scheme}.png", full_page=True)
    figures = page.locator("figure svg, figure img").all()
    assert len(figures) == 33
    for figure in figures:
        box = figure.bounding_box()
        assert box["width"] > 250
        assert box["height"] > 60
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.locator("main").evaluate(CLIPPED) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_comparison_is_seen_and_nothing_overflows(
    opened: Callable[[Path], Any],
    finished_run: Any,
    width: int,
    scheme: str,
    tmp_path: Path,
) -> None:
    write_comparison([finished_run.folder] * 3, tmp_path / "comparison.html")
    page = opened(tmp_path / "comparison.html")
    page.screenshot(path=tmp_path / f"comparison-{width}-{scheme}.png", full_page=True)
    for figure in page.locator("figure svg").all():
        assert figure.bounding_box()["width"] > 250
    assert page.locator("main").evaluate(CLIPPED) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the results"


def test_on_paper_nothing_is_folded_away(page: Any) -> None:
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert all(each.is_visible() for each in page.locator("details table").all())
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(35, 33, 29)"


def test_the_switch_works_from_the_keyboard(page: Any) -> None:
    real, synthetic = page.locator(".real img").first, page.locator(".synthetic img").first
    assert (real.is_visible(), synthetic.is_visible()) == (True, True)
    page.locator("#both").focus()
    page.keyboard.press("ArrowRight")
    assert (real.is_visible(), synthetic.is_visible()) == (True, False)
    page.keyboard.press("ArrowRight")
    assert (real.is_visible(), synthetic.is_visible()) == (False, True)
    page.get_by_label("both").check()
    assert (real.is_visible(), synthetic.is_visible()) == (True, True)


def test_the_first_tab_leads_to_the_results(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.url.endswith("#utility")


@pytest.mark.parametrize("name", ["ink", "muted", "teacher", "student", "generator"])
def test_text_and_lines_stand_out_from_the_paper(page: Any, name: str) -> None:
    style = "getComputedStyle(document.documentElement).getPropertyValue"
    colours = [page.evaluate(f"{style}('--{each}')").strip() for each in (name, "paper")]
    lighter, darker = sorted(map(luminance, colours), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG 2.2, level AA


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb as WCAG 2.2 defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
