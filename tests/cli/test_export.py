"""``metamixer export`` and what ``metamixer predict`` makes of its files."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from metamixer.cli.export import _show_int8
from metamixer.export import choose
from metamixer.export.quantize import Quantised
from tests.command import metamixer


@pytest.fixture
def picture(run, tmp_path):
    chosen = choose(run, "ensemble")
    image = chosen.data.test.images[:1]
    Image.fromarray(image[0, 0].numpy()).save(tmp_path / "one.png")
    return tmp_path / "one.png", chosen.classifier.probabilities(image)[0]


def test_it_says_what_was_written_and_what_int8_costs(by_command):
    done, said = by_command
    small = done.int8
    expected = ["ensemble of 0 resnet8 and 1 resnet14, after epoch 2", str(done.path), str(small.path), "README.md"]
    expected += [f"logits differ by {done.difference:.2g} at most", "12 test images, in batches of 1, 3, 8"]
    expected += [f"{100 * small.accuracy_int8:.1f} %", f"{small.kib_int8:,.0f}", "InferenceSession"]
    for words in expected:
        assert words in said


def test_predict_takes_onnx_files_and_ensembles(run, picture, by_command, tmp_path):
    path, expected = picture
    said = metamixer("export", run, "--peer", "ensemble", "--to", "safetensors", "--out", tmp_path / "out").stdout
    assert f"metamixer predict {tmp_path / 'out' / 'model.safetensors'}" in said
    classes = choose(run, "0").classifier.classes
    for model in (by_command[0].path, by_command[0].path.parent, tmp_path / "out"):
        metamixer("predict", model, path, "--out", tmp_path / "found.csv", "--device", "cpu")
        with (tmp_path / "found.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert [float(row[each]) for each in classes] == pytest.approx(expected.tolist(), abs=1e-5)


def test_int8_that_names_other_classes_is_warned_of(capsys):
    """Accuracy alone may stay the same."""
    for agreement, warned in ((0.67, True), (0.99, False)):
        _show_int8(Quantised(Path("model-int8.onnx"), "test", 300, 0.8, 0.798, agreement, 100, 30, 256))
        assert ("int8 predicts another class for 33.0 % of the images" in capsys.readouterr().err) == warned


def test_faults_have_exit_codes(run, tmp_path):
    assert "is not a run" in metamixer("export", tmp_path, code=2).stderr
    assert "no such peer" in metamixer("export", run, "--peer", "7", "--to", "safetensors", code=2).stderr
    tight = metamixer(
        "export", run, "--peer", 0, "--to", "torch-export", "--tolerance", "1e-30", "--out", tmp_path / "x", code=65
    )
    assert "differs from the network" in tight.stderr
    assert not list((tmp_path / "x").iterdir())
    (tmp_path / "no.pt2").write_bytes(b"PK\x03\x04" + b"\xff" * 100)
    said = metamixer("predict", tmp_path / "no.pt2", tmp_path / "x.png", code=65).stderr
    assert "no.pt2: .pt2 files are not read here, torch.export.load is for them; a run's folder, " in said
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    assert "cannot be read" in metamixer("predict", tmp_path / "no.onnx", tmp_path / "x.png", code=65).stderr
