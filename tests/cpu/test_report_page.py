"""The report page in a real browser: drawn without a network, in light, dark, on a phone, in print, by keyboard."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sepvit_deploy.report import Material, write
from tests.unit.report_material import HOSTILE, hostile, material, part, results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium: its programs are not in PATH")
FOCUSED = "document.activeElement.getAttribute('aria-label')"
DESK = {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write(material(), path)
    return path


class Visit:
    """A page that is open, what it asked for and what it said."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": DESK, "color_scheme": "light"} | options))
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.stopped: list[str | None] = []
        self.page.on("requestfailed", lambda request: self.stopped.append(request.failure))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            self.page.wait_for_selector("html[data-drawn]", timeout=30_000)

    def colour(self, selector: str, name: str) -> str:
        return str(self.page.eval_on_selector(selector, f"e => getComputedStyle(e).{name}"))

    def each(self, selector: str, script: str) -> list[Any]:
        return list(self.page.eval_on_selector_all(selector, f"found => found.map(e => {script})"))

    def tab_into_a_chart(self) -> str:
        for _ in range(40):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("document.activeElement.closest('.chart') !== null"):
                return str(self.page.evaluate(FOCUSED))
        raise AssertionError("the Tab key leads to no point")

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    open_visits: list[Visit] = []

    def open_page(path: Path, **options: Any) -> Visit:
        open_visits.append(Visit(browser, path, **options))
        return open_visits[-1]

    yield open_page
    for found in open_visits:
        found.close()


def test_every_chart_is_drawn_and_nothing_is_asked_of_a_network(visit: Any, report: Path) -> None:
    found = visit(report)
    assert found.requests == [report.as_uri()]
    assert found.said == []
    drawn = found.each(".chart", "e.querySelectorAll('[tabindex]').length")
    assert len(drawn) == 12
    assert min(drawn) > 0
    assert report.stat().st_size < 5_000_000


def test_light_and_dark_follow_the_reader_without_drawing_again(visit: Any, report: Path) -> None:
    found = visit(report)
    line = "#chart-p1-latency [tabindex]"
    light = found.colour("body", "backgroundColor"), found.colour(line, "fill")
    assert light == ("rgb(252, 252, 251)", "rgb(47, 134, 238)")
    found.page.emulate_media(color_scheme="dark")
    assert (found.colour("body", "backgroundColor"), found.colour(line, "fill")) == (
        "rgb(22, 22, 20)",
        "rgb(124, 180, 252)",
    )
    shot = Image.open(io.BytesIO(found.page.screenshot()))
    assert shot.convert("L").resize((1, 1)).getpixel((0, 0)) < 60


def test_print_is_light_unfolds_the_figures_and_cuts_no_chart(visit: Any, report: Path) -> None:
    found = visit(report, color_scheme="dark")
    found.page.set_viewport_size({"width": 700, "height": 1000})  # about A4 less its margins
    found.page.emulate_media(media="print", color_scheme="dark")
    assert found.colour("body", "backgroundColor") == "rgb(255, 255, 255)"
    assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert max(found.each(".chart svg", "e.getBoundingClientRect().right")) <= 700
    assert found.page.is_visible("details.keep table")
    assert not found.page.is_visible("details.extra")
    assert not found.page.is_visible("nav")
    assert found.page.pdf(format="A4").startswith(b"%PDF")


def test_a_phone_scrolls_downward_alone(visit: Any, report: Path) -> None:
    found = visit(report, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    found.page.evaluate("for (const e of document.querySelectorAll('details')) e.open = true")
    assert found.page.evaluate("document.documentElement.scrollWidth") == 360
    assert max(found.each(".chart svg", "e.getBoundingClientRect().right")) <= 360
    boxes = found.each(".scroll", "[e.scrollWidth > e.clientWidth, e.tabIndex]")
    assert [True, 0] in boxes, "a wide table scrolls in a box of its own, which the keyboard reaches"


def test_the_keyboard_reaches_points_and_their_values_are_shown(visit: Any, report: Path) -> None:
    found = visit(report)
    first = found.tab_into_a_chart()
    assert first.startswith("sepvit_t.fp32.plan, batch 1: p50")
    tip = found.page.locator(".tip:visible")
    assert "p99" in tip.inner_text()
    assert tip.inner_text().split("\n")[0] == "sepvit_t.fp32.plan, batch 1"
    found.page.keyboard.press("ArrowRight")
    assert found.page.evaluate(FOCUSED).startswith("sepvit_t.fp32.plan, batch 2: ")
    found.page.keyboard.press("End")
    assert found.page.evaluate(FOCUSED).startswith("torch-compile:t, batch 64: ")
    found.page.keyboard.press("Escape")
    assert tip.count() == 0
    found.page.keyboard.press("ArrowRight")
    assert found.page.evaluate(FOCUSED) == first, "after the last point comes the first"
    found.page.set_viewport_size({"width": 700, "height": 900})
    found.page.wait_for_timeout(200)
    assert found.page.evaluate(FOCUSED) == first, "a chart of another width keeps its points"


def test_a_pointer_shows_the_nearest_point(visit: Any, report: Path) -> None:
    found = visit(report)
    point = found.page.locator("#chart-p1-limit [tabindex]").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    found.page.mouse.move(box["x"] + box["width"] + 3, box["y"] + box["height"] / 2)
    assert found.page.locator(".tip:visible").inner_text().startswith("sepvit_t.fp32.plan, batch 1")
    found.page.mouse.move(5, 5)
    assert found.page.locator(".tip:visible").count() == 0


def test_names_from_files_are_never_run(visit: Any, tmp_path: Path) -> None:
    write(hostile(), tmp_path / "hostile.html")
    found = visit(tmp_path / "hostile.html")
    assert found.said == []
    assert len(found.requests) == 1
    assert found.page.evaluate("document.images.length") == 0
    assert HOSTILE in found.tab_into_a_chart()
    assert found.page.locator(".tip:visible").inner_text().startswith(HOSTILE)


def test_the_policy_would_stop_what_got_through(visit: Any, report: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted.html"
    more = '<img src="https://example.org/x.png"><link rel="stylesheet" href="x.css">'
    planted.write_text(report.read_text(encoding="utf-8").replace("<main>", f"<main>{more}"), encoding="utf-8")
    found = visit(planted)
    assert len(found.requests) == 3
    assert found.stopped == ["csp", "csp"]


def test_without_javascript_there_are_the_tables(visit: Any, report: Path) -> None:
    found = visit(report, java_script_enabled=False)
    assert found.page.is_visible("noscript p")
    found.page.click("#p1-latency summary")
    assert found.page.is_visible("#p1-latency table")


@pytest.mark.parametrize("batches", [(8,), (1, 3)])
def test_few_points_are_drawn_too(visit: Any, tmp_path: Path, batches: tuple[int, ...]) -> None:
    write(Material((part(results(batches)), part(results(batches), "b.json"))), tmp_path / "few.html")
    found = visit(tmp_path / "few.html")
    assert found.said == []
    assert found.page.evaluate("document.querySelectorAll('#chart-p2-latency [tabindex]').length") == 4 * len(batches)
