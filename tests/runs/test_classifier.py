"""A classifier's file: what it says, and what is refused."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from metamixer.data import ImageError
from metamixer.models.factory import build
from metamixer.runs.classifier import Classifier

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def made(name="resnet8", **options):
    torch.manual_seed(0)
    network = build(name, num_classes=3, in_channels=3, **options).eval()
    return Classifier(network, name, options, ("a", "b", "c"), 3, (8, 6), MEAN, STD, {"data": "toy", "accuracy": 0.5})


def pixels(count=4):
    return torch.randint(0, 256, (count, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


MEMBERS = [{"name": "resnet8", "options": {"shortcut": "A"}}, {"name": "wrn_16_1"}]


@pytest.mark.parametrize(("name", "options"), [("resnet8", {"shortcut": "A"}), ("ensemble", {"members": MEMBERS})])
def test_a_file_is_read_as_it_was_saved(name, options, tmp_path):
    classifier = made(name, **options)
    classifier.save(tmp_path / "model.safetensors")
    read = Classifier.load(tmp_path / "model.safetensors")
    for field in ("name", "options", "classes", "channels", "size", "mean", "std", "facts"):
        assert getattr(read, field) == getattr(classifier, field)
    assert not any(module.training for module in read.network.modules())
    assert torch.equal(read.probabilities(pixels()), classifier.probabilities(pixels()))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_weights_are_a_plain_state_dict(tmp_path):
    classifier = made()
    classifier.save(tmp_path / "model.safetensors")
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(weights, dict(classifier.network.state_dict()), rtol=0, atol=0)


def test_probabilities_by_hand():
    classifier, images = made(), pixels()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        logits = classifier.network((images / 255 - mean) / std)
    wanted = logits.double().exp() / logits.double().exp().sum(-1, keepdim=True)
    found = classifier.probabilities(images)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


def test_files_are_predicted_in_order_whatever_the_batch(tmp_path):
    classifier, images = made(), pixels(5)
    paths = [tmp_path / f"{9 - number}.png" for number in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(path)
    for size in (2, 64):
        torch.testing.assert_close(classifier.predict(paths, size), classifier.probabilities(images))
    assert classifier.predict([]).shape == (0, 3)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"bad\.png"):
        classifier.predict([paths[0], tmp_path / "bad.png"])


def test_files_that_are_no_classifier_are_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.safetensors cannot be read"):
        Classifier.load(tmp_path / "x.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="is not a classifier of metamixer"):
        Classifier.load(tmp_path / "y.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", [], "do not describe a network"),
        ("classes", ["a", "b"], "'resnet8' cannot be built with its weights"),
        ("classes", None, "do not describe a network"),
        ("architecture", {"name": "resnet8"}, "do not describe a network"),
        ("architecture", {"name": "wrn_16_1", "options": {}}, "'wrn_16_1' cannot be built with its weights"),
        ("architecture", {"name": "resnet8", "options": {"depth": 2, "x": 1}}, "'resnet8' cannot be built"),
        ("architecture", {"name": "nothing", "options": {}}, "'nothing' is not a network"),
        ("preprocessing", {"channels": 0, "size": [8, 6], "mean": [], "std": []}, "do not describe"),
        ("preprocessing", {"channels": 3, "size": [8, 6], "mean": [0], "std": [1]}, "a number for each channel"),
        ("preprocessing", {"channels": 3, "size": [0, 6], "mean": [0] * 3, "std": [1] * 3}, "do not describe"),
    ],
)
def test_metadata_that_do_not_fit(key, value, message, tmp_path):
    classifier, path = made(), tmp_path / "model.safetensors"
    metadata = {**classifier.metadata, key: json.dumps(value)}
    safetensors.torch.save_file(dict(classifier.network.state_dict()), path, metadata)
    with pytest.raises(ValueError, match=message) as caught:
        Classifier.load(path)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_are_not_fetched_again(tmp_path):
    """The file has them; an option that says so is kept for the record."""
    torch.manual_seed(0)
    network = build("timm:test_resnet", num_classes=3, in_channels=3).eval()
    options = {"pretrained": True}
    classifier = Classifier(network, "timm:test_resnet", options, ("a", "b", "c"), 3, (32, 32), MEAN, STD, {})
    classifier.save(tmp_path / "model.safetensors")
    read = Classifier.load(tmp_path / "model.safetensors")
    assert read.options == options
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(read.probabilities(images), classifier.probabilities(images))
