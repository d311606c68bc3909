"""What is wrong with a recipe is said before images are decoded."""

from dataclasses import replace

import pytest
import torch

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.data import Data, TensorImages
from metamixer.runs import before_data
from metamixer.runs.before_data import advice, check_before_data, unequal_classes
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
    with pytest.raises(
        RecipeError, match=r"train\.validate_every=25: .* accepted: validate_every=5 or less, or mixer\.strength=1"
    ):
        train(Recipe.of({}, changes), tmp_path / "run")


def test_a_batch_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(before_data, "available_memory", lambda: 2.0**30)
    check_before_data(Recipe.of({"data": {"image_size": 512, "channels": 3}, "train": {"batch_size": 64}}))
    recipe = Recipe.of({"data": {"image_size": "4000x2000", "channels": 3}, "train": {"batch_size": 64}})
    with pytest.raises(RecipeError, match=r"4000x2000: .* batch of 64 take 11\.4 GiB, and 1\.0 GiB are free"):
        check_before_data(recipe)


def test_batches_are_balanced_once():
    recipe = Recipe.of({}, ["data.sampler=balanced", "train.per_class=2"])
    with pytest.raises(RecipeError, match=r"data\.sampler: balanced with train\.per_class=2"):
        check_before_data(recipe)
    (said,) = advice(Recipe.of({}, ["data.sampler=balanced", "train.class_weights=balanced"]))
    assert "so that they count twice" in said


def test_unequal_classes_are_warned_of_where_nothing_answers_them():
    labels = torch.tensor([0] * 11 + [1] * 2)
    images = TensorImages(torch.zeros(13, 1, 8, 8, dtype=torch.uint8), labels, ("cat", "dog"))
    data = Data("pets", images, None, None, ("cat", "dog"), (0.5,), (0.5,))
    said = unequal_classes(Recipe(), data)
    assert said.startswith("classes differ by more than 5 times: 11 of cat, 2 of dog; train.class_weights=balanced or")
    for change in ("train.class_weights=effective", "data.sampler=balanced", "train.per_class=2"):
        assert unequal_classes(Recipe.of({}, [change]), data) is None
    assert unequal_classes(Recipe(), replace(data, train=images.subset(torch.arange(2, 13)))) is None


def test_what_is_hardly_meant_is_warned_of():
    assert advice(Recipe()) == []
    frozen = [{"name": "resnet8", "frozen": True}, "resnet8"]
    (said,) = advice(Recipe.of({"peers": frozen}))
    assert "peers.0 (resnet8) is frozen and has no weights" in said
    for known in ({"weights": "a.safetensors"}, {"name": "timm:resnet18", "pretrained": True}):
        assert advice(Recipe.of({"peers": [frozen[0] | known, "resnet8"]})) == []
    (said,) = advice(Recipe.of({"peers": [{"name": "resnet8", "freeze": "stage1"}, "resnet8"]}))
    assert "starts from random weights, and freeze=stage1 keeps some of them" in said
    (said,) = advice(Recipe.of({"peers": ["resnet8"]}))
    assert said.startswith("resnet8 is alone")
