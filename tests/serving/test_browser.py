"""The page in a real browser, wide and narrow."""

import shutil

import pytest

from tests.serving.conftest import CLASSES

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome is installed")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as started:
        yield started.chromium.launch(executable_path=BROWSER, args=QUIET)


@pytest.fixture(params=[1280, 390], ids=["wide", "narrow"])
def page(browser, server, request):
    page = browser.new_page(viewport={"width": request.param, "height": 800})
    page.set_default_timeout(60_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("dialog", lambda dialog: page.faults.append(dialog.message))
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.goto(server.address)
    yield page
    page.close()


def test_images_are_chosen_and_looked_at(page, images):
    page.set_input_files("#files", images[:3])
    cards = page.locator("article")
    cards.locator("h2").nth(2).wait_for()
    assert "3 of 3 images" in page.inner_text("#count")
    assert page.inner_text("h1") == "run"
    assert "4 networks, 3 classes" in page.inner_text("#about")
    first = cards.first.locator(".network")
    assert first.locator("h3").all_inner_texts() == ["deployed", "ensemble", "0 resnet8", "1 resnet14"]
    assert first.locator("img").count() == 3
    assert all(
        image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
        for image in first.locator("img").all()
    )
    assert set(first.first.locator(".title").all_inner_texts()) == set(CLASSES)  # as text: no element came of it
    top = first.first.locator("button").first
    assert top.get_attribute("aria-pressed") == "true"
    assert first.nth(1).locator("button").first.is_disabled()
    # The page is as wide as the window, and the networks stand side by side only where there is room.
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    lefts = {box.bounding_box()["x"] for box in first.all()}
    assert len(lefts) == (1 if page.viewport_size["width"] < 640 else 4)
    assert page.faults == []


def test_a_class_is_chosen_for_the_maps(page, images):
    page.set_input_files("#files", images[0])
    network = page.locator(".network").nth(2)
    before = network.locator("img").get_attribute("src")
    name = network.locator(".title").last.inner_text()
    network.locator("button").last.focus()
    page.keyboard.press("Enter")
    page.locator(".network").nth(2).locator("button[aria-pressed=true]").get_by_text(name, exact=True).wait_for()
    assert page.locator(".network figcaption").all_inner_texts() == 3 * [f"map: {name}"]
    assert page.locator(".network").nth(2).locator("img").get_attribute("src") != before
    assert page.faults == []


def test_images_are_dropped_and_other_files_are_named(page, images, tmp_path):
    page.evaluate(
        """async (bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "<b>dropped.png", { type: "image/png" }));
          data.items.add(new File(["no image"], "text.png", { type: "image/png" }));
          data.items.add(new File([new Uint8Array(2000001)], "large.png", { type: "image/png" }));
          document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        list(images[1].read_bytes()),
    )
    page.locator("article h2").nth(2).wait_for()
    large, text, dropped = page.locator("article").all_inner_texts()
    assert "<b>dropped.png" in dropped
    assert "not an image of a known format" in text
    assert "at most 2,000,000 are accepted" in large
    assert len(page.faults) == 1  # the browser notes the reply to the one that is no image
    assert "415" in page.faults[0]
    page.get_by_role("button", name="Clear").click()
    assert page.locator("article").count() == 0
    assert not page.locator("#bar").is_visible()
