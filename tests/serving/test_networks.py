"""What is served is what predict says, and the maps are those of the network that they name."""

import base64
import io
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.data import DataError, ImageError, normalise
from metamixer.evaluation.localization.activation_maps import activation_maps
from metamixer.export.export import export
from metamixer.export.select_network import choose
from metamixer.report.map_gallery import picture
from metamixer.runs.classifier import Classifier
from metamixer.serving.networks import Served

PEERS = ["0 resnet8", "1 resnet14"]


def pixels(uri):
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as found:
        return np.asarray(found)


@pytest.fixture(scope="module")
def served(run):
    return Served.open(run)


def test_a_run_has_its_deployed_network_the_ensemble_and_every_peer(run, served, images):
    known = {"deployed": Classifier.load(run), "ensemble": choose(run, "ensemble").classifier}
    known |= {name: choose(run, str(number)).classifier for number, name in enumerate(PEERS)}
    assert list(served.networks) == list(known)
    for path in images:
        answer = served.look(path.read_bytes())
        for found, (name, classifier) in zip(answer["networks"], known.items(), strict=True):
            row = classifier.predict(path)[0]
            assert found["name"] == name
            assert found["class"] == classifier.classes[row.argmax()]
            expected = dict(zip(classifier.classes, row.tolist(), strict=True))
            assert found["probabilities"] == pytest.approx(expected, abs=1e-6)
            assert list(found["probabilities"].values()) == sorted(found["probabilities"].values(), reverse=True)
            assert "map" not in found
        assert answer["class"] == answer["networks"][0]["class"]


def heat(run, number, prepared, label):
    one = choose(run, str(number)).classifier
    wanted = normalise(prepared[None], one.mean, one.std), torch.tensor([label])
    return activation_maps(one.network, *wanted, stage="stage3")[0][0]


def test_maps_are_those_of_their_network_for_the_asked_class(run, served, images):
    empty = 0
    for path, label in product(images[:3], range(3)):
        answer = served.look(path.read_bytes(), top=1, maps=True, of=served.first.classes[label])
        prepared = served.first.read(path)
        assert (pixels(answer["image"]) == prepared.permute(1, 2, 0).numpy()).all()
        assert all(len(one["probabilities"]) == 1 for one in answer["networks"])
        shown = {one["name"]: one for one in answer["networks"]}
        assert "map" not in shown["ensemble"]
        for number, name in enumerate(PEERS):
            seen = heat(run, number, prepared, label)
            assert shown[name]["map_of"] == served.first.classes[label]
            assert (pixels(shown[name]["map"]) == pixels(picture(prepared, seen))).all()
            empty += not seen.any()
        own = served.look(path.read_bytes(), maps=True)
        assert all(one["map_of"] == one["class"] for one in own["networks"] if "map" in one)
    assert empty < 9  # of 18; the others distinguish two networks and three classes


def test_files_are_served_with_what_they_have(run, images, tmp_path):
    content = images[1].read_bytes()
    known = Served.open(run).look(content)["networks"]
    ensemble = export(run, peer="ensemble", to="safetensors", out=tmp_path / "e.safetensors").path
    answer = Served.open(ensemble).look(content, maps=True)["networks"]
    assert [one["name"] for one in answer] == ["ensemble", *PEERS]
    for one, other in zip(answer, known[1:], strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    (one,) = Served.open(run / "model.safetensors").look(content, maps=True)["networks"]
    assert one["probabilities"] == known[0]["probabilities"]
    assert one["map"]
    (one,) = Served.open(export(run, to="onnx", out=tmp_path / "m.onnx").path).look(content, maps=True)["networks"]
    assert one["probabilities"] == pytest.approx(known[0]["probabilities"], abs=1e-5)
    assert "map" not in one


def test_a_run_without_checkpoints_or_a_deployed_network_has_what_is_left(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    assert list(Served.open(tmp_path / "run").networks) == ["ensemble", *PEERS]
    shutil.copy(run / "model.safetensors", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert list(Served.open(tmp_path / "run").networks) == ["deployed"]
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises((DataError, ValueError), match=r"no checkpoint|data\.json"):
        Served.open(tmp_path / "run")


def test_what_is_no_image_is_refused(served):
    for content in (b"", b"/etc/hostname", b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        with pytest.raises(ImageError):
            served.look(content)
