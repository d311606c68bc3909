"""A classifier as a model of the hub, without a network: folders only."""

import json
from pathlib import Path

import pytest
import torch

from metamixer.export import choose, export
from metamixer.export.hub import HubClassifier
from metamixer.runs.classifier import Classifier


def test_a_folder_comes_back_as_it_was(run, tmp_path):
    done = export(run, peer="ensemble", to="hub", out=tmp_path / "folder")
    assert {path.name for path in done.path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
        "model.json",
    }
    chosen = choose(run, "ensemble")
    images = chosen.data.test.images[:5]
    model = HubClassifier.from_pretrained(done.path)
    with torch.no_grad():
        logits = model(images)
    assert torch.equal(logits.softmax(-1), chosen.classifier.probabilities(images))
    assert torch.equal(Classifier.load(done.path / "model.safetensors").probabilities(images), logits.softmax(-1))
    config = json.loads((done.path / "config.json").read_text())
    assert config["classes"] == list(chosen.data.classes)
    assert not model.training

    model.save_pretrained(tmp_path / "again")
    again = HubClassifier.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again(images), logits)
    assert again.facts == model.facts
    assert (tmp_path / "again" / "README.md").read_text().startswith("---\nlibrary_name: metamixer")


def test_a_damaged_or_missing_weight_is_an_error(run, tmp_path):
    import safetensors.torch

    done = export(run, peer=0, to="hub", out=tmp_path / "folder")
    path = done.path / "model.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = safetensors.torch.load_file(path)
    del weights["classifier.bias"]
    safetensors.torch.save_file(weights, path, metadata)
    with pytest.raises(ValueError, match=r"classifier\.bias"):  # the mixin itself would load the rest and say nothing
        HubClassifier.from_pretrained(done.path)


def test_what_is_pushed_is_the_folder(run, tmp_path, monkeypatch):
    """The upload itself needs a network; what would go up is looked at in its place."""
    sent = {}

    class Made:
        repo_id = "me/small"

    def upload_folder(self, *, repo_id, folder_path, **_):
        sent.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()}, repository=repo_id)
        return "the commit"

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, **_: Made())
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    done = export(run, peer=1, to="hub", out=tmp_path / "folder", push="me/small")
    assert done.pushed == "the commit"
    assert sent.pop("repository") == "me/small"
    assert sent.keys() == {"model.safetensors", "config.json", "README.md"}
    assert sent["README.md"].decode().strip() == done.card.read_text().strip()
    (tmp_path / "sent").mkdir()
    for name, content in sent.items():
        (tmp_path / "sent" / name).write_bytes(content)
    assert HubClassifier.from_pretrained(tmp_path / "sent").name == "resnet14"
