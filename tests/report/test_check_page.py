"""The page about a folder: what is wrong is on it with its pictures, names are text, and it needs nothing else."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from metamixer.cli.app import app
from metamixer.config.yaml_file import RecipeError
from metamixer.data import check
from metamixer.report.check_page import MOST, picture, write_check
from tests.report import test_browser

NASTY = "<b>dog</b> & $x$"


def noise(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for name, count in (("cat", 12), (NASTY.replace("/", "∕"), 2)):
        for number in range(count):
            place = root / "train" / name / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            noise(len(name) * 100 + number).save(place)
        (root / "test" / name).mkdir(parents=True)
        noise(len(name) * 1000).save(root / "test" / name / "t.png")
    cat, dog = sorted((root / "train").iterdir(), key=lambda path: len(path.name))
    noise(300).save(root / "test" / "cat" / "leak.png")  # cat/0
    noise(301).save(cat / "again.png")
    noise(302).save(dog / "wrong.png")
    Image.new("RGB", (20, 20), (7, 7, 7)).save(cat / "blank.png")
    noise(9, (8, 40)).save(cat / "tiny.png")
    (cat / "broken.png").write_bytes(b"no image")
    return root


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures, self.text, self.sections, self.section = [], {}, {}, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag == "section":
            self.section = attrs["id"]
            self.sections.append(self.section)
        if tag == "img":
            self.pictures.setdefault(self.section, []).append(attrs["src"])

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data


def titled(page):
    """Sections by their headings."""
    return {page.text[name].strip().splitlines()[0].strip(): name for name in page.sections}


def test_everything_odd_is_on_the_page_with_its_pictures(folder, tmp_path):
    out = tmp_path / "page.html"
    write_check(check(folder), folder, out)
    text = out.read_text()
    page = Page(text)
    names = titled(page)
    pictures = {title: len(page.pictures.get(name, ())) for title, name in names.items()}
    assert pictures == {
        "Classes": 0, "Leaks": 2, "Copies across classes": 2, "Copies inside a class": 2, "Blank": 1, "Tiny": 1,
        "Cannot be read": 0,
    }  # fmt: skip
    assert "test/cat/leak.png" in page.text[names["Leaks"]]
    assert "train/cat/0.png" in page.text[names["Leaks"]]
    assert "again.png" in page.text[names["Copies inside a class"]]
    assert "broken.png" in page.text[names["Cannot be read"]]
    assert NASTY.replace("/", "∕") in page.text[names["Classes"]]
    assert "b" not in page.tags or text.count("<b>") == text.count("<b>cat") + text.count("<b>&lt;b&gt;dog")
    assert "classes differ by more than 5 times" not in text  # 16 and 3: said from 5 times on
    for source in page.pictures[names["Leaks"]]:
        image = Image.open(BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
        assert image.size == (112, 112)


def test_shapes_stand_below_the_sizes(folder, tmp_path):
    write_check(check(folder), folder, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert re.search(r"Most frequent, as channels x height x width: \d+ of 3x", page.text[titled(page)["Classes"]])


def test_the_page_needs_nothing_else_and_runs_nothing(folder, tmp_path):
    out = tmp_path / "page.html"
    write_check(check(folder), folder, out)
    text = out.read_text()
    assert "script" not in Page(text).tags
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in text.replace("&#39;", "'")
    assert " style=" not in text


def test_many_copies_are_counted_and_some_shown(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(MOST + 8):
        noise(1).save(tmp_path / "data" / "a" / f"{number}.png")
    noise(2).save(tmp_path / "data" / "b" / "0.png")
    write_check(check(tmp_path / "data"), tmp_path / "data", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    section = titled(page)["Copies inside a class"]
    assert len(page.pictures[section]) == 2 * MOST
    assert "and 7 more" in page.text[section]


def test_places_that_are_refused_before_anything_is_decoded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("metamixer.data.check", lambda *_: pytest.fail("decoded"))
    for out, words in (("x.txt", "a name that ends in .html"), (str(folder / "x.html"), "inside of the data")):
        result = CliRunner().invoke(app, ["check", str(folder), "--html", out])
        assert result.exit_code == 2 or isinstance(result.exception, RecipeError)
        assert words in " ".join(f"{result.output} {result.exception}".split())


def test_pictures_of_other_channels(tmp_path):
    for channels in (1, 2, 5):
        np.save(tmp_path / "x.npy", np.zeros((20, 24, channels), np.uint8))
        assert picture(tmp_path / "x.npy").startswith("data:image/png")
    assert picture(tmp_path / "gone.png") is None


@pytest.mark.skipif(test_browser.BROWSER is None, reason="no browser is installed")
def test_in_a_browser(folder, tmp_path):
    write_check(check(folder), folder, tmp_path / "page.html")
    text, errors = test_browser.browse(tmp_path / "page.html", tmp_path / "profile", "--dump-dom")
    assert not errors
    assert "leak.png" in text
