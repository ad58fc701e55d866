"""The server's page in a real browser: a picture is dropped or chosen, and there is its answer, or what is wrong."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cpu.commands import PHOTO
from tests.cpu.serving import Served, segmenter, served, small_model

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium: its programs are not in PATH")
HOSTILE = "<img src=x onerror=alert(1)>"
LABELS = ("zero", "one", HOSTILE, "three", "a label that is long enough to need more than one line on a small screen")
DROP = """async ([name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragover", "drop"])
    document.querySelector("#drop").dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    model = small_model(folder / "small.onnx")
    with served(model, "--labels", str(folder / "labels.txt"), "--max-body-mb", "1") as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, server: Served, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, opened; whatever it says on the console fails the test at its end."""
    options = {"viewport": {"width": 1200, "height": 900}} | getattr(request, "param", {})
    context = browser.new_context(**options)
    found = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    found.on("console", lambda message: said.append(message.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    found.on("request", lambda sent: asked.append(sent.url))
    found.goto(server.url)
    found.wait_for_selector("html[data-ready]")
    yield found
    context.close()
    # Chromium itself notes each answer of 400 and more, and what the policy stopped.
    assert [line for line in said if "status of 4" not in line and "Content Security Policy" not in line] == []
    assert all(url.startswith((server.url, "blob:", "data:")) for url in asked), asked


def drop(page: Any, name: str, content: bytes, kind: str = "image/png") -> None:
    page.evaluate(DROP, [name, kind, base64.b64encode(content).decode()])


def answered(page: Any) -> None:
    page.wait_for_selector("#answer:not([hidden])")
    page.wait_for_selector("body:not(.busy)")


def test_a_dropped_picture_gets_its_classes_times_and_batch(page: Any) -> None:
    assert page.inner_text("#status") == "No picture yet."
    drop(page, "cat.jpg", PHOTO.read_bytes(), "image/jpeg")
    answered(page)
    assert page.locator("#classes .label").all_inner_texts()[0] == HOSTILE, "as text, not as markup"
    assert page.locator("#classes li").count() == 5
    shares = [float(text.rstrip(" %")) for text in page.locator("#classes .score").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.3)
    widths = page.eval_on_selector_all(
        "#classes .bar", "found => found.map(e => e.offsetWidth / e.parentElement.offsetWidth)"
    )
    assert widths == pytest.approx([share / 100 for share in shares], abs=0.02)
    assert page.inner_text("#batch") == "1"
    assert page.inner_text("#version") == "1"
    for name in ("queue", "compute", "rest", "total", "seen"):
        assert page.inner_text(f"#{name}").endswith(" ms")
    with Image.open(PHOTO) as photo:
        assert page.eval_on_selector("#preview", "e => e.naturalWidth") == photo.width
    assert "cat.jpg" in page.get_attribute("#preview", "alt")
    assert HOSTILE in page.inner_text("#status"), "said to who does not see the bars"


def test_a_mask_lies_over_its_picture_with_a_legend(browser: Any, tmp_path: Path) -> None:
    """A picture of four colours, whose mask is drawn pixel for pixel; and one that is larger than what is drawn."""
    colours = [[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200], [250, 250, 0]]
    facts = {"classes": [*LABELS[:4], "four"], "palette": colours}
    with served(segmenter(tmp_path / "fields.onnx", output="mask", facts=facts)) as found:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(found.url)
        page.wait_for_selector("html[data-ready]")
        assert "masks of 5 classes" in page.inner_text("#facts")
        assert page.inner_text("#curl").endswith(f"--output mask.png {found.url}/v1/segment")
        assert not page.is_visible("#top")
        fields = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
        for factor in (20, 800):
            content = io.BytesIO()
            Image.fromarray(fields.repeat(factor, 0).repeat(factor * 2, 1)).save(content, "PNG")
            drop(page, "fields.png", content.getvalue())
            page.wait_for_selector("#mask:not([hidden])")
            answered(page)
            with Image.open(io.BytesIO(found.post("/v1/segment", content.getvalue()).body)) as mask:
                expected = mask.resize((80, 40) if factor == 20 else (1024, 512), Image.Resampling.NEAREST)
                present = [k for _, k in sorted(mask.getcolors() or [], reverse=True)]
                pixels = np.asarray(expected.convert("RGBA"))
            url = page.eval_on_selector("#mask", "canvas => canvas.toDataURL()")
            with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as drawn:
                assert drawn.size == expected.size
                assert np.mean(np.asarray(drawn.convert("RGBA")) != pixels) < 0.01
            assert len(present) > 1
            assert page.locator("#classes .label").all_inner_texts() == [facts["classes"][k] for k in present]
            chips = page.eval_on_selector_all(
                "#classes .label i", "all => all.map(e => getComputedStyle(e).backgroundColor)"
            )
            assert chips == [f"rgb({', '.join(map(str, colours[k]))})" for k in present]
        boxes = [page.locator(place).bounding_box() for place in ("#preview", "#mask")]
        assert boxes[0] == pytest.approx(boxes[1], abs=0.5)
        page.fill("#veil", "25")
        assert page.eval_on_selector("#mask", "canvas => getComputedStyle(canvas).opacity") == "0.25"
        assert said == []
        page.close()


def test_it_says_what_is_served(page: Any, server: Served) -> None:
    about = server.get("/v1/model").document
    assert page.inner_text("h1") == "small"
    assert about["sha256"][:12] in page.inner_text("#facts")
    assert "version 1" in page.inner_text("#facts")
    assert page.is_visible("#untrained")
    assert page.inner_text("#limits") == "JPEG, PNG, WebP, BMP or TIFF, at most 1 MB and 32 megapixels."
    assert page.inner_text("#curl") == f"curl --data-binary @photo.jpg {server.url}/v1/classify"


def test_what_is_wrong_is_said_in_words(page: Any) -> None:
    drop(page, "notes.txt", b"no picture at all", "text/plain")
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error").startswith("The picture was not taken: the picture is not a picture")
    assert not page.is_visible("#answer")
    drop(page, "large.png", bytes(1_500_000))
    page.locator("#error", has_text="1.5 MB").wait_for()
    assert "at most 1 MB" in page.inner_text("#error")
    drop(page, "fine.jpg", PHOTO.read_bytes())
    answered(page)
    assert not page.is_visible("#error")


def test_a_picture_that_is_too_large_ends_the_request_before_it(page: Any) -> None:
    page.route("**/v1/classify*", lambda route: None)  # which is never answered
    drop(page, "fine.jpg", PHOTO.read_bytes())
    page.wait_for_selector("body.busy")
    drop(page, "large.png", bytes(1_500_000))
    page.locator("#error", has_text="1.5 MB").wait_for()
    page.wait_for_selector("body:not(.busy)")


def test_a_server_that_is_gone_is_said_too(browser: Any, tmp_path: Path) -> None:
    with served(small_model(tmp_path / "small.onnx")) as found:
        page = browser.new_page()
        page.goto(found.url)
        page.wait_for_selector("html[data-ready]")
        assert found.stop() == 0
        page.set_input_files("#file", PHOTO)
        page.wait_for_selector("#error:not([hidden])")
        assert page.inner_text("#error") == "The server does not answer. Is it still running?"
        page.close()


def test_the_keyboard_is_enough(page: Any) -> None:
    page.on("filechooser", lambda chooser: chooser.set_files(PHOTO))  # first: the browser learns of it a little later
    page.wait_for_timeout(300)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert page.eval_on_selector("#drop", "e => getComputedStyle(e).outlineStyle") == "solid"
    page.keyboard.press("Space")
    answered(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "top"
    page.select_option("#top", "1")
    page.wait_for_selector("#classes li:only-child")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "again"
    with page.expect_response("**/v1/classify?top=1") as response:
        page.keyboard.press("Enter")
    assert response.value.status == 200


@pytest.mark.parametrize("page", [{"viewport": {"width": 360, "height": 740}, "is_mobile": True}], indirect=True)
def test_a_phone_scrolls_downward_alone(page: Any) -> None:
    page.set_input_files("#file", PHOTO)
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True)
def test_the_dark_is_dark(page: Any) -> None:
    shot = Image.open(io.BytesIO(page.screenshot()))
    assert shot.convert("L").resize((1, 1)).getpixel((0, 0)) < 70
    page.emulate_media(color_scheme="light")
    assert page.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor") == "rgb(252, 252, 251)"


def test_the_policy_would_stop_what_got_through(page: Any) -> None:
    script = "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))"
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate(script)
    assert page.evaluate("window.ran") is None
