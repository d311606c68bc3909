"""The page in a browser: no errors on its console, something to see, and nothing wider than a phone."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from metamixer.report import report
from tests.report.made import NASTY, run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
    "--v=0", "--virtual-time-budget=4000",
]  # fmt: skip
# A window is 500 pixels wide at least, a frame is as wide as one likes.
FRAME = """<!DOCTYPE html><body style="margin:0"><iframe src="{}" width="390" height="4000" style="border:0"></iframe>
<script>addEventListener("message", (event) => {{ document.body.dataset.found = event.data; }})</script>"""
LOOK = """
const root = document.documentElement;
const header = document.querySelector("table[data-sortable] thead th:nth-child(6)");
const column = () => [...header.closest("table").tBodies[0].rows].map((row) => Number(row.cells[5].dataset.value));
const before = column();
header.querySelector("button").click();
const down = column();
header.querySelector("button").click();
const up = column();
const dark = getComputedStyle(document.body).backgroundColor;
document.getElementById("theme").click();
const light = getComputedStyle(document.body).backgroundColor;
const cut = [...document.querySelectorAll(".scroll")].map((box) =>
  [box.scrollWidth > box.clientWidth + 1, box.classList.contains("cut")]);
const svg = document.querySelector("svg[data-chart]");
svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
const legend = [...svg.parentElement.querySelectorAll(".value, .at")].map((each) => each.textContent);
parent.postMessage(JSON.stringify({ inner: root.clientWidth, wide: root.scrollWidth, ready: root.dataset.ready, cut,
  before, down, up, dark, light, legend, sort: header.getAttribute("aria-sort") }), "*");
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome is installed")


def browse(page, profile, *words):
    done = subprocess.run(
        [BROWSER, *QUIET, f"--user-data-dir={profile}", *words, page.as_uri()],
        capture_output=True, text=True, errors="replace", timeout=120, check=True,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, errors


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with everything on it, of names that try to break out."""
    root = tmp_path_factory.mktemp("pages")
    peers = ("0 <script>alert(1)</script>", '1 "><img src=x onerror=alert(1)>', "2 " + 90 * "w")
    folder = run(root / "run", peers=peers, data="x" * 120, classes=[*NASTY, *(60 * c for c in "abcdefghij")])
    return report([folder, run(root / "other")], root / "page.html", title="W" * 80)


def test_seen_on_a_phone(page, tmp_path):
    digest = base64.b64encode(hashlib.sha256(LOOK.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8").replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    (tmp_path / "copy.html").write_text(text.replace("</body>", f"<script>{LOOK}</script></body>"), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format("copy.html"))
    dom, errors = browse(tmp_path / "frame.html", tmp_path / "profile", "--dump-dom")
    assert errors == []
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom)[1]))
    assert found["inner"] == 390
    assert found["wide"] == 390
    assert found["ready"] == "1"
    assert found["down"] == sorted(found["before"], reverse=True)
    assert found["up"] == sorted(found["before"])
    assert found["sort"] == "ascending"
    assert found["dark"] != found["light"]
    assert found["legend"][-1] == "at epoch 3"
    assert all(wide == says for wide, says in found["cut"])
    assert any(wide for wide, _ in found["cut"])


def test_seen_on_a_desk(page, tmp_path):
    picture = tmp_path / "page.png"
    _, errors = browse(page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1280,2000")
    assert errors == []
    with Image.open(picture) as image:
        assert image.size == (1280, 2000)
        grey = np.asarray(image.convert("L"))
    assert np.median(grey) == 255
    assert (grey < 128).mean() > 0.01
    assert all((grey[top : top + 500] < 128).any() for top in range(0, 2000, 500))
