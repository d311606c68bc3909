"""``metamixer check`` as it is shown."""

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from metamixer.cli.app import app
from metamixer.data.files import picture


def test_check_reports_leaks(tmp_path):
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    for place in ("train/a/0.png", "train/b/0.jpg", "test/a/9.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (picture.rotate(180) if "/b/" in place else picture).save(tmp_path / place)
    Image.new("L", (9, 9)).save(tmp_path / "test" / "a" / "flat.png")
    result = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert result.exit_code == 0
    for words in (
        "copies of training images: 1 test image",
        "copies across splits, same pixels (1): ",
        "1 image blank, of nearly one colour: ",
        "1 image tiny, with a side below 16 pixels: ",
        "channels: 1 image of 1, 3 images of 3",
    ):
        assert words in result.output


def test_check_counts_what_needs_a_plug_in(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "formats", lambda: picture.FORMATS)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.effect_noise((20, 20), 80).save(tmp_path / name / "0.png")
        for number in range(1, 4):
            Image.effect_noise((20, 20), 80).convert("RGB").save(tmp_path / name / f"{number}.avif")
    result = CliRunner().invoke(app, ["check", str(tmp_path)])
    said = " ".join(result.output.split())
    assert result.exit_code == 65
    assert "6 files: AVIF, which needs pip install 'metamixer[formats]'" in said
    assert "6 of 8 cannot be read" in said


def test_check_reports_unequal_classes(tmp_path):
    for name, count in (("cat", 11), ("dog", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.effect_noise((20, 20), 80 + number).save(tmp_path / name / f"{number}.png")
    result = CliRunner().invoke(app, ["check", str(tmp_path)])
    said = " ".join(result.output.split())
    assert (
        "classes differ by more than 5 times: 11 of cat, 2 of dog; train.class_weights=balanced or data.sampler" in said
    )


def test_check_reports_16_bit_files_that_hold_12_bits(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 4096, (20, 20), dtype=np.uint16)
            Image.fromarray(pixels | 2048).save(tmp_path / name / f"{number}.png")
    said = " ".join(CliRunner().invoke(app, ["check", str(tmp_path)]).output.split())
    assert "16-bit images: the largest value in 6 of 6 files is 4,09" in said
    assert "so that they are dark; data.white=4095 makes 4,095 white" in said
