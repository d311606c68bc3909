"""The page of a report: what is on it, that nothing breaks out of its place, and that it fetches nothing."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from metamixer.cli.app import app
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.evaluation.localization.map_gallery import LookedAt, Shown
from metamixer.report import report
from metamixer.runs.run import train
from tests.report.made import NASTY, PEERS, evaluation, run

TINY = ["data.train_limit=12", "peers.0.name=resnet8", "peers.1.name=resnet14", "train.epochs=2", "train.batch_size=40",
        "data.image_size=10", "train.accelerator=cpu"]  # fmt: skip
ELEMENTS = """
html head meta title style body header div h1 h2 h3 h4 p nav a button main section article figure figcaption table thead
tbody tr th td span svg g rect line path circle text image ul li dl dt dd details summary pre code strong br footer
script img
"""
ATTRIBUTES = """
lang charset http-equiv content name id class type hidden href scope data-value data-sortable data-chart title viewbox
preserveaspectratio aria-hidden aria-label aria-live role tabindex width height x y x1 x2 y1 y2 cx cy r d
stroke-dasharray text-anchor src alt
"""
NAMES = ('0 <script>alert("peer")</script>', '1 "><img src=x onerror=alert(1)>')


@dataclass
class Cells:
    caption: str
    rows: list


class Page(HTMLParser):
    """Elements, attributes, texts, and the cells of every table."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.attributes, self.links, self.charts, self.tables = [], set(), [], [], []
        self.text, self.titles, self._cell, self.raw = "", [], None, {"style": "", "script": ""}
        self._inside = None
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside = tag if tag in self.raw else None
        found = dict(attrs)
        self.attributes |= set(found)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.titles += [found[name] for name in ("title", "aria-label", "alt") if name in found]
        if "data-chart" in found:
            self.charts.append((found["aria-label"], json.loads(found["data-chart"])))
        if tag == "table":
            self.tables.append(Cells(found["aria-label"], []))
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("td", "th"):
            self._cell = ["", found.get("data-value")]
            self.tables[-1].rows[-1].append(self._cell)

    def handle_endtag(self, tag):
        self._inside = None
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if self._inside:
            self.raw[self._inside] += data
        else:
            self.text += data
        if self._cell is not None:
            self._cell[0] += data

    def table(self, words):
        return next(table for table in self.tables if words in table.caption)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a baseline, both evaluated by hand."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe.of({}, TINY)
    train(recipe, folder)
    train(Recipe.of(recipe.as_dict(), ["loss=independent", "mixer=none"]), folder / "baseline")
    classes = [f"class {k}" for k in range(10)]
    (folder / "evaluation.json").write_text(json.dumps(evaluation(classes)))
    (folder / "baseline" / "evaluation.json").write_text(json.dumps(evaluation(classes, seed=7, strength=1)))
    return folder


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    result = CliRunner().invoke(app, ["report", str(trained), "--out", str(out), "--title", "For <you> & me"])
    assert result.exit_code == 0, result.output
    assert f"written: {out}" in result.output
    return Page(out)


def values(row):
    return [None if cell[1] is None else float(cell[1]) for cell in row[1:]]


def test_the_numbers_are_those_of_the_files(trained, page):
    ended = json.loads((trained / "report.json").read_text())
    base = json.loads((trained / "baseline" / "report.json").read_text())
    rows = page.table("test images, after the last epoch").rows
    assert [cell[0] for cell in rows[0]] == ["network", "accuracy", "top-5", "NLL", "baseline", "gain"]
    scores = [*ended["last_epoch"]["peers"], ended["last_epoch"]["ensemble"], ended["deployed"]]
    others = [*base["last_epoch"]["peers"], base["last_epoch"]["ensemble"], base["deployed"]]
    for row, score, other in zip(rows[1:], scores, others, strict=True):
        gained = score["accuracy"] - other["accuracy"]
        assert values(row) == [score["accuracy"], score["top5"], score["nll"], other["accuracy"], gained]
        assert [cell[0] for cell in row[1:]] == [
            f"{100 * score['accuracy']:.1f} %", f"{100 * score['top5']:.1f} %", f"{score['nll']:.3f}",
            f"{100 * other['accuracy']:.1f} %", f"{100 * gained:+.1f}",
        ]  # fmt: skip
    assert rows[-1][0][0] == f"deployed: {ended['deployed']['name']}, epoch {ended['best']['epoch']}"


def test_calibration_classes_and_confusions(trained, page):
    found = json.loads((trained / "evaluation.json").read_text())
    base = json.loads((trained / "baseline" / "evaluation.json").read_text())
    rows = page.table("Calibration").rows
    for row, one in zip(rows[1:], found["networks"], strict=True):
        after = one["calibrated"]
        expected = [one[key] for key in ("accuracy", "nll", "brier", "ece", "gap", "temperature")]
        assert values(row) == [*expected, after["nll"], after["ece"]]
        assert row[4][0] == f"{100 * one['ece']:.1f}"
    deployed, before = found["networks"][-1], base["networks"][-1]
    rows = page.table("Accuracy of each class").rows
    for k, row in enumerate(rows[1:]):
        mine, other = deployed["per_class"][k], before["per_class"][k]
        assert row[0][0] == f"class {k}"
        assert values(row)[:4] == [sum(deployed["confusion"][k]), mine, other, mine - other]
    rows = page.table("Confusion matrix of deployed").rows
    assert [[int(cell[0].replace(",", "")) for cell in row[1:]] for row in rows[1:]] == deployed["confusion"]
    bins = deployed["reliability"]
    hint = f"{bins['count'][5]} images, mean confidence {100 * bins['confidence'][5]:.1f} %"
    assert hint in page.text


def test_robustness_and_localization(trained, page):
    found = json.loads((trained / "evaluation.json").read_text())
    robust = found["robustness"]
    first = page.table("Accuracy under corruptions and attacks, 100 images").rows[1]
    under = [robust["attacks"][key]["accuracy"]["0 resnet8"] for key in ("fgsm", "pgd-10", "pgd-20")]
    clean, mean = robust["clean"]["0 resnet8"], robust["corruptions"]["mean"]["0 resnet8"]
    assert values(first) == pytest.approx([clean, mean, mean - clean, *under])
    _, chart = next(each for each in page.charts if "severity" in each[0])
    kinds = robust["corruptions"]["kinds"].values()
    expected = [clean, *(sum(kind["0 resnet8"][k] for kind in kinds) / 3 for k in range(5))]
    assert chart["lines"][0]["values"] == pytest.approx(expected, rel=1e-5)
    row = page.table("Localization by grad-cam").rows[1]
    one = found["localization"]["networks"][0]
    expected = [one["max_box_acc_v2"], *one["max_box_acc"].values(), one["pointing"], one["energy"]]
    assert values(row) == pytest.approx(expected)


def test_the_curves_are_those_of_the_metrics(trained, page):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    charts = {label.partition(" over ")[0]: data for label, data in page.charts}
    val = charts["Validation accuracy"]
    assert val["xs"] == [1, 2]
    assert [line["name"] for line in val["lines"]] == ["0 resnet8", "1 resnet14", "ensemble"]
    for peer in range(2):
        expected = [line["val"]["peers"][peer]["accuracy"] for line in lines]
        assert val["lines"][peer]["values"] == pytest.approx(expected, rel=1e-5)
        for term, title in (("task", "Task loss (cross-entropy)"), ("distill", "Distillation loss")):
            expected = [line["terms"][term][peer] for line in lines]
            assert charts[title]["lines"][peer]["values"] == pytest.approx(expected, rel=1e-5)
    assert charts["Learning rate"]["lines"][0]["values"] == pytest.approx([line["lr"] for line in lines], rel=1e-5)


def test_recipe_versions_notes_and_preview(trained, page):
    assert (trained / "recipe.yaml").read_text().strip() in page.text
    assert "600 of 6000 training images held out for validation" in page.text
    assert torch.__version__ in page.text
    assert "For <you> & me" in page.text
    pictures = [link for link in page.links if link.startswith("data:image/png;base64,")]
    assert len(pictures) == 1 + 8 * 3, "the preview, and eight images: alone and under the maps of two peers"
    assert base64.b64decode(pictures[0].partition(",")[2]).startswith(b"\x89PNG")
    assert "This command makes them" not in page.text


def check_closed(page):
    """Nothing but what the template writes, and nothing that would be fetched."""
    assert set(page.tags) <= set(ELEMENTS.split())
    assert page.attributes <= set(ATTRIBUTES.split())
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    outside = page.source.replace(page.raw["script"], "").replace(page.raw["style"], "")
    assert not re.search(r"""(src|href|action|data|url|srcset|poster)\s*=?\s*["'(]\s*(https?:)?//""", outside)
    assert not re.search(r"//|@import|url\(", page.raw["style"])
    assert not re.search(r"https?:|fetch|XMLHttp|import\(|innerHTML|eval", page.raw["script"])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page.source)[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_the_page_is_closed(page):
    check_closed(page)


def test_names_stay_text(tmp_path):
    folder = run(tmp_path / '<b> "x" [red] $\\frac$', peers=NAMES, data=NASTY[0], notes=NASTY)
    run(folder / "baseline", peers=NAMES, data=NASTY[1])
    found = Page(report([folder], tmp_path / "a.html"))
    check_closed(found)
    shown = [name.replace("\n", "\\n") for name in NASTY]
    assert [row[0][0] for row in found.table("Accuracy of each class").rows[1:]] == shown
    assert [cell[0] for cell in found.table("Confusion matrix of").rows[0][1:]] == shown
    for name in (*shown, *NAMES, '<b> "x" [red] $\\frac$'):
        assert name in found.text
    assert {line["name"] for _, data in found.charts for line in data["lines"]} >= set(NAMES)
    both = Page(report([folder, folder / "baseline"], tmp_path / "b.html"))
    check_closed(both)
    assert [row[0][0] for row in both.table("side by side").rows[1:]] == ['<b> "x" [red] $\\frac$', "baseline"]


def test_odd_characters_in_files(tmp_path):
    folder = run(tmp_path / "run")
    found = json.loads((folder / "evaluation.json").read_text())
    found["classes"] = ["half \ud800", "esc \x1b[31m", "left ‮", *map(str, range(4))]
    (folder / "evaluation.json").write_text(json.dumps(found))
    names = [row[0][0] for row in Page(report([folder], tmp_path / "a.html")).table("Accuracy of each class").rows[1:4]]
    assert names == ["half \\ud800", "esc \\x1b[31m", "left \\u202e"]


def test_several_runs_and_many_classes(tmp_path):
    paths = [run(tmp_path / name / "run", seed=seed, epochs=6 + seed) for seed, name in enumerate(("a", "b"))]
    many = run(tmp_path / "many", classes=[f"c{k}" for k in range(31)], epochs=1200)
    found = Page(report([*paths, many], tmp_path / "all.html"))
    check_closed(found)
    rows = found.table("The runs side by side").rows[1:]
    for row, path in zip(rows, (*paths, many), strict=True):
        ended = json.loads((path / "report.json").read_text())
        assert values(row)[4] == ended["deployed"]["accuracy"]
        assert values(row)[6] == ended["last_epoch"]["ensemble"]["accuracy"]
    assert rows[0][0][0] == str(paths[0])  # the last parts of both paths are the same
    network = json.loads((many / "evaluation.json").read_text())["networks"][-1]
    counts = [
        (count, t, n) for t, row in enumerate(network["confusion"]) for n, count in enumerate(row) if t != n and count
    ]
    largest = max(counts, key=lambda each: (each[0], -each[1], -each[2]))
    first = found.table("Largest confusions of").rows[1]
    assert [cell[0] for cell in first[:3]] == [f"c{largest[1]}", f"c{largest[2]}", str(largest[0])]
    assert max(len(data["xs"]) for _, data in found.charts) <= 500
    assert all(data["xs"][-1] == 1200 for _, data in found.charts if len(data["xs"]) > 300)


def test_what_is_missing_names_the_command(tmp_path):
    folder = run(tmp_path / "my run", evaluated=False)
    run(folder / "baseline", evaluated=False)
    text = Page(report([folder], tmp_path / "a.html")).text
    assert f"metamixer evaluate '{folder}'" in text
    assert f"metamixer evaluate '{folder / 'baseline'}'" in text
    (folder / "report.json").unlink()
    text = Page(report([folder], tmp_path / "a.html")).text
    assert f"The training has not ended. Resume it with: metamixer train --resume '{folder}'" in text
    plain = evaluation(NASTY, hard=False)
    shutil.rmtree(folder)
    (run(folder) / "evaluation.json").write_text(json.dumps(plain))
    text = Page(report([folder], tmp_path / "a.html")).text
    assert f"metamixer evaluate '{folder}' --robustness all" in text
    assert "Where the networks look" not in text


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("report.json", "{", "report.json cannot be read"),
        (
            "report.json",
            '{"last_epoch": {"peers": [{"name": "a", "accuracy": "much"}]}}',
            "last_epoch.peers.0.accuracy",
        ),
        ("evaluation.json", "[1, 2]", "evaluation.json is left out"),
        ("evaluation.json", '{"images": 1e999}', "evaluation.json is left out: images"),
        ("evaluation.json", "[" * 100_000, "evaluation.json cannot be read"),
        ("environment.json", b"\xff\xfe\x00", "environment.json cannot be read"),
        ("metrics.jsonl", '{"epoch": 1}\n{"epoch": ', "1 of 2 lines left out of the curves: not readable"),
        ("baseline/recipe.yaml", "a: b: c", "The baseline is left out"),
        ("baseline/report.json", "nothing", "Baseline: report.json cannot be read"),
    ],
)
def test_broken_files_become_notes(name, content, told, tmp_path):
    folder = run(tmp_path / "run")
    run(folder / "baseline")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = Page(report([folder], tmp_path / "a.html"))
    assert told in found.text
    check_closed(found)


def test_values_that_are_not_finite_or_not_there(tmp_path):
    folder = run(tmp_path / "run")
    found = json.loads((folder / "evaluation.json").read_text())
    found["networks"][0] |= {"ece": float("nan"), "nll": float("inf"), "per_class": [None] * 7, "calibrated": None}
    found["networks"][1] = {"name": "1 resnet14"}
    (folder / "evaluation.json").write_text(json.dumps(found))
    ended = json.loads((folder / "report.json").read_text())
    ended["last_epoch"]["peers"][0]["nll"] = float("nan")
    (folder / "report.json").write_text(json.dumps(ended))
    page = Page(report([folder], tmp_path / "a.html"))
    row = page.table("Calibration").rows[1]
    assert [row[2][0], row[4][0], row[7][0]] == ["–", "–", "–"]
    assert not re.search(r"\b(NaN|nan|inf|Infinity|None)\b", page.text)


def test_a_study(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text("title: <b>\n")
    table = {"caption": "Means & <i>", "columns": ["method", "accuracy"], "notes": ["3 seeds each"],
             "rows": [["dml <x>", "77.1 ± 0.3"], ["none", None], ["kdcl", 76.25]]}  # fmt: skip
    pooled = {"caption": "Pooled <b>", "columns": ["row", "against"], "rows": [["a <x>", "b"]]}
    (folder / "results.json").write_text(json.dumps({"table": table, "pooled": {"table": pooled}}))
    page = Page(report([folder], tmp_path / "a.html"))
    check_closed(page)
    rows = page.table("Means & <i>").rows
    assert [[cell[0] for cell in row] for row in rows[1:]] == [
        ["dml <x>", "77.1 ± 0.3"],
        ["none", "–"],
        ["kdcl", "76.25"],
    ]
    assert [values(row) for row in rows[1:]] == [[77.1], [None], [76.25]]
    assert "3 seeds each" in page.text
    assert [[cell[0] for cell in row] for row in page.table("Pooled <b>").rows[1:]] == [["a <x>", "b"]]
    for content, told in (
        ("{}", "has no table"), ("{", "cannot be read"), ('{"table": 3}', "is not an object with columns and rows"),
        ('{"table": {"columns": ["a"], "rows": [[1, 2]]}}', "1 columns, and a row of 2 cells"),
    ):  # fmt: skip
        (folder / "results.json").write_text(content)
        assert told in Page(report([folder, run(tmp_path / "run")], tmp_path / "a.html")).text
    (folder / "results.json").unlink()
    assert "has no results yet" in Page(report([folder], tmp_path / "a.html")).text


def test_a_gallery(tmp_path):
    folder = run(tmp_path / "run")
    seen = tuple(
        LookedAt(name, predicted, 0.625, torch.rand(8, 10), box)
        for name, predicted, box in zip(NAMES, NASTY[:2], (torch.tensor([1.0, 2, 6, 7]), None), strict=True)
    )
    looks = [Shown(torch.randint(0, 255, (channels, 8, 10), dtype=torch.uint8), NASTY[0], truth, seen)
             for channels, truth in ((1, None), (3, torch.tensor([[0.0, 1, 4, 5]])))]  # fmt: skip
    asked = []
    page = Page(report([folder], tmp_path / "a.html", gallery=lambda path: asked.append(path) or looks))
    check_closed(page)
    assert asked == [folder]
    assert page.tags.count("image") == 6
    assert '<rect class="found" x="1.0" y="2.0" width="5.0" height="5.0"/>' in page.source
    assert page.source.count('<rect class="truth" x="0.0" y="1.0" width="4.0" height="4.0"/>') == 3
    assert f"{NASTY[0]}, 62.5 % ✓" in page.text
    assert f"{NASTY[1]}, 62.5 % ✗" in page.text

    assert "the true box" in page.text
    assert "the box around the largest bright part" in page.text
    bare = [Shown(torch.zeros(1, 8, 10, dtype=torch.uint8), "a", None, (LookedAt("n", "a", 0.5, None, None),))]
    page = Page(report([folder], tmp_path / "a.html", gallery=lambda path: bare))
    assert "a, 50.0 %; no map ✓" in page.text
    assert "the true box" not in page.text
    assert "the box around" not in page.text

    def fails(path):
        raise RuntimeError("no <weights>")

    assert "No activation maps: no <weights>" in Page(report([folder], tmp_path / "a.html", gallery=fails)).text


def test_data_that_are_gone_leave_a_note(tmp_path):
    folder = run(tmp_path / "run", data=str(tmp_path / "gone"), peers=("0 resnet8", "1 resnet8"))
    result = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "a.html")])
    assert result.exit_code == 0, result.output
    assert "No mixing preview: " in Page(tmp_path / "a.html").text
    CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "a.html"), "--no-pictures"])
    assert "No mixing preview" not in Page(tmp_path / "a.html").text


def test_what_a_report_needs(tmp_path):
    folder = run(tmp_path / "run", peers=PEERS)

    def told(*words, code=2):
        result = CliRunner().invoke(app, ["report", *map(str, words)])
        assert result.exit_code == code, result.output
        return result.output

    assert "no such folder" in told(tmp_path / "none")
    assert "is neither a run nor a study" in told(tmp_path)
    assert "expected a name that ends in .html" in told(folder, "--out", tmp_path / "a.pdf")
    (tmp_path / "b.html").mkdir()
    assert "is a folder" in told(folder, "--out", tmp_path / "b.html")
    (tmp_path / "file").write_text("")
    told(folder, "--out", tmp_path / "file" / "c.html", code=74)
    assert "is a file" in told(folder, "--out", tmp_path / "c.html", "--static", tmp_path / "file", "--no-pictures")
    (folder / "recipe.yaml").write_text("[")
    assert "recipe.yaml: not YAML" in told(folder, "--out", tmp_path / "c.html")
    with pytest.raises(RecipeError, match="needs the folder of a run"):
        report([], tmp_path / "c.html")


def test_values_of_any_class_do_for_the_gallery(tmp_path):
    one = SimpleNamespace(image=torch.zeros(1, 4, 4, dtype=torch.uint8), label="a", truth=None, networks=[])
    assert Page(report([run(tmp_path / "run")], tmp_path / "a.html", gallery=lambda _: [one])).tags.count("image") == 1
