"""The plots of a report as files."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from metamixer.cli.app import app
from metamixer.report import plots
from tests.report.made import run

NAMES = {"curves", "reliability", "confusion", "classes", "robustness"}
PEERS = (r"0 $\frac$", "1 _<svg>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = run(root / "run", peers=PEERS)
    run(made / "baseline", peers=PEERS, seed=3)
    return made


def test_plots_are_pictures(folder, tmp_path):
    out = tmp_path / "plots"
    words = ["report", str(folder), "--out", str(tmp_path / "a.html"), "--static", str(out), "--no-pictures"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"written: 10 plots in {out}" in result.output
    assert {path.name for path in out.iterdir()} == {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    for name in NAMES:
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 300
            assert np.asarray(image.convert("L")).std() > 10
        root = ElementTree.parse(out / f"{name}.svg").getroot()  # noqa: S314  (we wrote it)
        assert root.tag.endswith("}svg")
        assert not [one for one in root.iter() if one.tag.endswith("script")]


def test_the_same_plots_are_the_same_files(tmp_path):
    plain = run(tmp_path / "run", evaluated=False)
    for one, two in zip(plots([plain], tmp_path / "a"), plots(plain, tmp_path / "b"), strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_several_runs_and_runs_without_anything(tmp_path):
    plain, other = (run(tmp_path / name, evaluated=False, epochs=2) for name in ("run", "x [y]"))
    made = [path.name for path in plots([plain, other], tmp_path / "a")]
    assert made[:2] == ["comparison.png", "comparison.svg"]
    assert {"1-run-curves.png", "2-x-y-curves.svg"} <= set(made)
    for path in other.iterdir():
        if path.name != "recipe.yaml":
            path.unlink()
    assert plots([other], tmp_path / "b") == []
