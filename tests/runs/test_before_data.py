"""What is wrong with a recipe is said before images are decoded."""

import pytest

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.runs import before_data
from metamixer.runs.before_data import advice, check_before_data
from metamixer.runs.run import train


@pytest.mark.parametrize(
    ("peers", "words"),
    [
        (["resnet20", "resnt20"], r"peers\.1: 'resnt20' is not a network.*resnet20"),
        (["timm:resnet18x", "resnet8"], r"peers\.0: 'resnet18x' is not in timm.*resnet18"),
        (["torchvision:resnet1", "resnet8"], r"peers\.0: 'resnet1' is not in torchvision"),
        (["resnet8", {"name": "resnet8", "weights": "gone.safetensors"}], r"peers\.1\.weights: gone.* no such file"),
    ],
)
def test_networks_before_images(peers, words, tmp_path, monkeypatch):
    monkeypatch.setattr("metamixer.runs.data_record.load", lambda *_, **__: pytest.fail("images were decoded"))
    with pytest.raises(RecipeError, match=words):
        train(Recipe.of({"peers": peers}), tmp_path / "run")


def test_too_few_validations_for_auto_strength(tmp_path, monkeypatch):
    monkeypatch.setattr("metamixer.runs.data_record.load", lambda *_, **__: pytest.fail("images were decoded"))
    changes = ["mixer.strength=auto", "train.epochs=50", "train.validate_every=25"]
    with pytest.raises(RecipeError, match=r"train\.validate_every=25: .* accepted: validate_every=5 or less"):
        train(Recipe.of({}, changes), tmp_path / "run")


def test_a_batch_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(before_data, "available_memory", lambda: 2.0**30)
    check_before_data(Recipe.of({"data": {"image_size": 512, "channels": 3}, "train": {"batch_size": 64}}))
    recipe = Recipe.of({"data": {"image_size": "4000x2000", "channels": 3}, "train": {"batch_size": 64}})
    with pytest.raises(RecipeError, match=r"4000x2000: .* batch of 64 take 5\.7 GiB, and 1\.0 GiB are free"):
        check_before_data(recipe)


def test_what_is_hardly_meant_is_warned_of():
    assert advice(Recipe()) == []
    frozen = [{"name": "resnet8", "frozen": True}, "resnet8"]
    (said,) = advice(Recipe.of({"peers": frozen}))
    assert "peers.0 (resnet8) is frozen and has no weights" in said
    for known in ({"weights": "a.safetensors"}, {"name": "timm:resnet18", "pretrained": True}):
        assert advice(Recipe.of({"peers": [frozen[0] | known, "resnet8"]})) == []
    (said,) = advice(Recipe.of({"peers": ["resnet8"]}))
    assert said.startswith("resnet8 is alone")
