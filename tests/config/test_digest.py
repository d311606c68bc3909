"""Checksums of recipes: run folders and results are found by them, so they outlive the versions of this package."""

from dataclasses import dataclass
from typing import Annotated

import pytest
from pydantic import BaseModel, Field
from torch import nn

from metamixer.config.recipe import Recipe
from metamixer.config.registry import LOSSES, MIXERS, effective
from metamixer.config.yaml_file import RecipeError, parse_yaml
from metamixer.core.registry import Entry

# Recipes as they shipped with the first version, when MetaMixer's alpha was 1 by default: the files may change, what
# these say may not.
FIRST = {
    "e26c1041b5ff90a8": """
data: {name: cifar10}
peers: [resnet20, resnet20]
mixer: {name: metamixer, local_probability: 0.5, global_probability: 1.0, global_alpha: 1}
loss: {name: dml, temperature: 4}
optim: {name: sgd, lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 5e-4, schedule: cosine, warmup: 0.025}
train: {epochs: 200, batch_size: 128, precision: bf16, checkpoint_every: 5}
""",
    "7ca40ba527183c55": """
data: {name: cifar10-jpeg, val_share: 0.5}
peers: [resnet8, resnet8]
mixer: {name: metamixer, global_alpha: 1}
loss: {name: dml, temperature: 4}
optim: {lr: 0.05, weight_decay: 5e-4, warmup: 0.05, schedule: cosine, clip: null}
train: {epochs: 200, batch_size: 64, precision: bf16, validate_every: 50, checkpoint_every: 25}
""",
    "8e28ab923dcb0eef": """
data: {name: fashion-mini, train_limit: 20, pad: 0, flip: false}
peers: [resnet8, resnet8]
mixer: {name: metamixer, local_probability: 0.5, global_probability: 0.5, global_alpha: 1}
loss: {name: dml, temperature: 4}
optim: {name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 5e-4, schedule: cosine, warmup: 0.05}
train: {epochs: 200, batch_size: 32, validate_every: 50, checkpoint_every: 50}
""",
}
FIRST_MIXERS = {
    "none": "517c169c96c7fe8b",
    "mixup": "6a28f88871a4759a",
    "cutmix": "125fbb8e35e146ac",
    "cutnmix": "5d826809198bf208",
    "manifold-mixup": "c7b169a7573d4895",
    "same-class-cutmix": "500ad2b61fc8c663",
    "metamixer": "ef76ad362af68c3e",
}
FIRST_LOSSES = {
    "independent": "3817e3df8989799f",
    "dml": "76a97e994268ada0",
    "cl-ilr": "619f9d30dbf9cde9",
    "one": "d0f90bdd245a4812",
    "okddip": "18d12f0fc46bf10b",
    "mcl": "52c2587cc6be6c36",
    "lmcl": "b711407f56ba4578",
    "afd": "678af2a0e622383e",
    "amln": "b87c2a23aaf3d1c2",
    "infomax-adversarial": "8e71ebb6e7fde7e3",
    "ffl": "adc1f75e5aa44813",
    "switokd": "1beb67e231b0e1ab",
    "cutnmix": "8fec1fe0f51782a1",
    "kd": "8ad9f195d1eb8a80",
    "dkd": "b0a1c9dd78f3b46f",
    "kdcl": "9aa896248aa22e36",
    "pcl": "eb7f5f97852835f7",
    "codistillation": "a53d66f9461e0c22",
}


@pytest.mark.parametrize("digest", FIRST)
def test_the_first_recipes_keep_their_checksums(digest):
    assert Recipe.of(parse_yaml(FIRST[digest])).digest == digest


def test_mixers_and_losses_keep_their_checksums():
    """With all settings at their defaults, so that a default that changes, or a setting that is added, shows here."""
    assert {name: Recipe.of({"mixer": name}).digest for name in FIRST_MIXERS} == FIRST_MIXERS
    first = {"name": "metamixer", "global_alpha": 1}
    assert {name: Recipe.of({"mixer": first, "loss": name}).digest for name in FIRST_LOSSES} == FIRST_LOSSES


@dataclass(frozen=True)
class Before:
    share: float = 1.0


@dataclass(frozen=True)
class After:
    share: float = 1.0
    strength: Annotated[str, Field(json_schema_extra={"neutral": "fixed"})] = "auto"


class BeforeLoss(nn.Module):
    def __init__(self, share: float = 1.0) -> None:
        super().__init__()


class AfterLoss(nn.Module):
    def __init__(
        self, keep: Annotated[float | None, Field(json_schema_extra={"neutral": None})] = None, share: float = 1.0
    ) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("key", "table", "before", "after", "neutral", "other"),
    [
        ("mixer", MIXERS, Before, After, {"strength": "fixed"}, {}),
        ("loss", LOSSES, BeforeLoss, AfterLoss, {}, {"keep": 0.5}),
    ],
    ids=["mixer", "loss"],
)
def test_a_setting_that_is_added_changes_the_checksum_only_where_it_says_something(
    monkeypatch, key, table, before, after, neutral, other
):
    monkeypatch.setitem(table.entries, "mine", Entry(f"{__name__}:{before.__name__}", "one setting more"))
    old = Recipe.of({key: "mine"})
    old_digest, old_what = old.digest, old._what
    monkeypatch.setitem(table.entries, "mine", Entry(f"{__name__}:{after.__name__}", "one setting more"))
    same, changed = (Recipe.of({key: {"name": "mine", **settings}}) for settings in (neutral, other))
    assert same.digest == old_digest
    assert same._what == old_what
    assert set(same.as_dict()[key]) == {"name", "share", *(neutral or other)}, "the full recipe has it"
    assert changed.digest != old_digest
    assert len(changed.differences(same)) == 1


def test_settings_of_sections_are_marked_in_the_same_way():
    class Section(BaseModel):
        name: str = "a"
        labels: str | None = Field(None, json_schema_extra={"neutral": None})
        share: float = Field(0.0, json_schema_extra={"neutral": 0.0})

    assert effective(Section().model_dump(), Section) == {"name": "a"}
    full = {"name": "a", "labels": "x.csv", "share": 0.5}
    assert effective(Section(**full).model_dump(), Section) == full


def test_a_cache_is_layout_but_for_random_crops():
    plain = Recipe.of({"data": {"name": "photos"}})
    for cache in ("auto", "cache", "/elsewhere"):
        assert Recipe.of({"data": {"name": "photos", "cache": cache, "cache_size": 300}}).digest == plain.digest
    crops = {"name": "photos", "crop_scale": [0.3, 1]}
    decoded = Recipe.of({"data": crops})
    auto, here, other = (Recipe.of({"data": crops | {"cache": place}}) for place in ("auto", "cache", "/elsewhere"))
    assert auto.digest == here.digest == other.digest != decoded.digest
    assert Recipe.of({"data": crops | {"cache_size": 300}}).digest == decoded.digest
    larger = Recipe.of({"data": crops | {"cache": "auto", "cache_size": 300}})
    assert larger.differences(auto) == ["data.cache_size: None, here 300"]
    assert auto.differences(decoded) == ["data.cache: not set, here on", "data.cache_size: not set, here None"]


def test_the_folder_of_a_cache_is_the_same_in_any_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = Recipe.of({"data": {"name": "photos", "cache": "cache"}})
    assert made.data.cache == str(tmp_path / "cache")
    with pytest.raises(RecipeError, match="a folder, auto or off is accepted"):
        Recipe.of({"data": {"name": "photos", "cache": ""}})
