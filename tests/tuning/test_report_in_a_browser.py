"""The report as a browser shows it: nothing fails, nothing is fetched, everything is read, reached and kept inside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import NAMES, Page, browser_page, find_browser
from contrast import AA_TEXT, contrast
from report_folder import full_sweep

from lexray.tuning.results.report import build_results

BROWSER = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"needs a browser on PATH: {', '.join(NAMES)}"),
]

POINT = "[...document.querySelectorAll('.points a')].filter(point => point.getBoundingClientRect().width)[{}]"
TIP = "document.getElementById('tip').hidden ? null : document.querySelector('#tip span').textContent"

# Colours of every text that is seen, and what lies below it: grounds from the element outwards, up to an opaque one.
SEEN_TEXTS = """
(() => {
  const found = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), color = element.closest("svg") ? style.fill : style.color;
    const grounds = [];
    for (let at = element; at; at = at.parentElement) grounds.push(getComputedStyle(at).backgroundColor);
    found.set(color + grounds, [color, grounds, walker.currentNode.data.trim().slice(0, 40)]);
  }
  return [...found.values()];
})()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("browsed")
    folder, trials = full_sweep(place)
    build_results(folder, trials)
    return place / "report.html"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    assert BROWSER is not None
    with browser_page(BROWSER) as opened:
        yield opened


def everything_opened(page: Page, report: Path, **screen: Any) -> None:
    page.look(**screen)
    page.open(report)
    page.evaluate("document.querySelectorAll('details').forEach(trial => { trial.open = true; })")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_opens_without_a_complaint_and_fetches_nothing(page: Page, report: Path, dark: bool) -> None:
    page.complaints.clear()
    page.requests.clear()
    everything_opened(page, report, width=1280, dark=dark)
    page.evaluate("document.querySelector('#trials thead button').click()")
    assert page.complaints == []
    assert page.requests == [report.as_uri()]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, report: Path, width: int) -> None:
    everything_opened(page, report, width=width, dark=False)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_is_told_from_its_ground(page: Page, report: Path, dark: bool) -> None:
    everything_opened(page, report, width=1280, dark=dark)
    page.evaluate(f"{POINT.format(0)}.focus({{focusVisible: true}})")
    texts = page.evaluate(SEEN_TEXTS)
    assert len(texts) > 10
    for colour, grounds, text in texts:
        ground = next(filter(None, map(opaque, grounds)))
        assert contrast(opaque(colour) or pytest.fail(colour), ground) >= AA_TEXT, (text, colour, ground)
    assert opaque(page.evaluate("getComputedStyle(document.body).backgroundColor")) == (
        (0x15, 0x19, 0x1E) if dark else (255, 255, 255)
    )


def opaque(colour: str) -> tuple[float, float, float] | None:
    """Of `rgb(1, 2, 3)`; None of `rgba(0, 0, 0, 0)`, which is nothing. Half-transparent colours are not used."""
    red, green, blue, *alpha = map(float, re.findall(r"[\d.]+", colour))
    assert alpha in ([], [0.0]), colour
    return None if alpha else (red, green, blue)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_point_tells_of_its_trial_under_the_pointer(page: Page, report: Path, width: int) -> None:
    page.look(width=width, dark=False)
    page.open(report)
    assert page.evaluate(TIP) is None
    x, y = middle(page, 1)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    told = page.evaluate(TIP)
    assert re.fullmatch(r"\S+\nL0 [\d.]+, FVU [\d.]+\ndead 20\.0%, [\w ]+", told)
    box = page.evaluate("(b => [b.left, b.right, b.top])(document.getElementById('tip').getBoundingClientRect())")
    assert box[0] >= 0
    assert box[1] <= width
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert page.evaluate(TIP) is None


def test_a_point_tells_of_its_trial_to_the_keyboard_and_arrows_lead_on(page: Page, report: Path) -> None:
    page.look(width=1280, dark=False)
    page.open(report)
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    first = page.evaluate(TIP)
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    second = page.evaluate(TIP)
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft")
    assert first is not None
    assert second not in (None, first)
    assert page.evaluate(TIP) == first


def test_the_first_tap_tells_of_the_trial_and_the_second_leads_to_its_row(page: Page, report: Path) -> None:
    page.look(width=390, dark=False)
    page.open(report)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        tap(page, 0)
        told = page.evaluate(TIP)
        assert told is not None
        assert page.evaluate("location.hash") == ""
        tap(page, 0)
        row = page.evaluate("document.querySelector(location.hash).cells[0].textContent")
        assert row == told.splitlines()[0]
    finally:
        page.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_without_scripts_the_points_have_titles_and_links(page: Page, report: Path) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.look(width=1280, dark=False)
        page.open(report)
        assert page.evaluate(f"{POINT.format(0)}.querySelector('title').textContent").count("\n") == 2
        x, y = middle(page, 0)
        for kind in ("mousePressed", "mouseReleased"):
            page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        assert page.evaluate("location.hash") == page.evaluate(f"{POINT.format(0)}.getAttribute('href')")
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


def middle(page: Page, point: int) -> tuple[float, float]:
    """Where a point is on the screen, once it is brought there."""
    page.evaluate("document.querySelector('.frontier').scrollIntoView()")
    x, y = page.evaluate(
        f"(b => [b.left + b.width / 2, b.top + b.height / 2])({POINT.format(point)}.getBoundingClientRect())"
    )
    return x, y


def tap(page: Page, point: int) -> None:
    x, y = middle(page, point)
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
