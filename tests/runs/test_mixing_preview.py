"""The picture of what a mixer does."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from metamixer.cli.app import app
from metamixer.config.recipe import Recipe
from metamixer.core.plan import Blend, MixPlan, Paste, PerPeer
from metamixer.core.types import Batch
from metamixer.runs.mixing_preview import CELL, DPI, LEFT, MARGIN, compose, draw

NASTY = ["$x$ $\\frac$", "[red] [/]", "<b>", "=cmd()", "née 猫", "new\nline\x1b"]


def expected_size(rows, columns):
    inches = (LEFT + columns * CELL[0] + 2 * MARGIN, rows * CELL[1] + 2 * MARGIN)
    return tuple(int(side * DPI) for side in inches)


@pytest.mark.parametrize(
    ("mixer", "titles"),
    [
        ("metamixer", ["Images", "Companions", "Local mix", "Global mix"]),
        ("metamixer, global_probability: 0.02, local_probability: 0.02", ["Images", "Companions"]),
        ("cutmix", ["Images", "CutMix"]),
        ("cutnmix", ["Images", "CutMix, peer 0", "CutMix, peer 1"]),
        ("mixup", ["Images", "Mixup"]),
        ("same-class-cutmix, box: sample", ["Images", "Companions", "Local mix"]),
        ("none", ["Images"]),
    ],
)
def test_rows_and_size(mixer, titles, tmp_path):
    recipe = Recipe.of({"peers": ["resnet8"]}, [f"mixer={{name: {mixer}}}", "data.train_limit=5"])
    told = draw(recipe, tmp_path / "new" / "preview.png", images=4, seed=1)
    rows = [line for line in told if not line.startswith("the mixer")]
    assert [row.partition(" (")[0] for row in rows][: len(titles)] == titles
    if "0.02" in mixer:
        assert len(rows) > 2  # rare operations are looked for
    assert (len(rows) == len(told)) == (mixer != "none")
    with Image.open(tmp_path / "new" / "preview.png") as image:
        assert image.size == pytest.approx(expected_size(len(rows), 4), abs=1)
        assert np.asarray(image.convert("L")).std() > 20  # there is something to see


def test_nasty_names_in_colour(tmp_path):
    rng = np.random.default_rng(0)
    for name in NASTY:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 255, (20, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    out = tmp_path / "out.png"
    words = ["--data", str(tmp_path / "photos"), "--peers", "resnet8,resnet8", "--images", "3", "--out", str(out)]
    result = CliRunner().invoke(app, ["preview", *words])
    assert result.exit_code == 0, result.output
    assert f"written: {out}" in result.output
    with Image.open(out) as image:
        assert image.size == pytest.approx(expected_size(4, 3), abs=1)


def test_what_the_rows_show():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 4, 4).contiguous()
    batch = Batch(images, torch.tensor([0, 1, 2, 1]), images + 10)
    paste = Paste(torch.tensor([0, 0]), torch.tensor([2, 2]), (4, 4), source=images + 10)
    blend = Blend(torch.tensor(0.75), torch.tensor([1, 0, 3, 2]), (0.0, 0.5))
    rows = compose(batch, MixPlan((paste, blend)), classes=3, stages=3, peers=2)
    assert [row.title for row in rows] == ["Images", "Companions", "Local mix", "Global mix"]
    assert rows[2].images[0, 0].tolist() == [[10, 10, 0, 0], [10, 10, 0, 0], [0] * 4, [0] * 4]
    assert rows[2].targets.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert rows[3].images[0, 0, 3, 3] == 0.25
    assert rows[3].targets[0].tolist() == [0.75, 0.25, 0]
    assert "at the images or after stage 1 of 3, by peer" in rows[3].note


def test_boxes_of_each_peers_own_have_a_row_each():
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 2, 4).contiguous()
    partner = torch.tensor([1, 0])
    pastes = tuple(Paste(torch.tensor([0, at]), torch.tensor([2, at + 1]), (2, 4), partner=partner) for at in (0, 2))
    plan = MixPlan((PerPeer(pastes), Blend(torch.tensor(0.5), partner)))
    rows = compose(Batch(images, torch.tensor([0, 1])), plan, classes=2, stages=3, peers=2)
    assert [row.title for row in rows] == ["Images", "CutMix, peer 0", "CutMix, peer 1", "Global mix"]
    assert [row.images[0, 0].tolist() for row in rows[1:3]] == [[[1, 0, 0, 0]] * 2, [[0, 0, 1, 0]] * 2]
    assert [row.targets[0].tolist() for row in rows[1:]] == [[0.75, 0.25], [0.75, 0.25], [0.5, 0.5]]
    assert [row.paste for row in rows] == [None, *pastes, None]
    assert rows[3].images[0, 0].tolist() == [[0.5] * 4] * 2


def test_the_same_seed_gives_the_same_picture(tmp_path):
    recipe = Recipe.of({"peers": ["resnet8"]}, ["data.train_limit=5"])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw(recipe, tmp_path / f"{name}.png", images=2, seed=seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c
