"""A new method stands in four places: its file, its test, a line of the registry, its card."""

from pathlib import Path

import pytest

from metamixer.config.recipe import Recipe
from metamixer.config.registry import LOSSES, MIXERS
from metamixer.core.registry import Entry
from tests.command import metamixer

ROOT = Path(__file__).parents[2]
TINY = ["--data", "fashion-mini", "data.train_limit=10", "--peers", "resnet8,resnet8", "--epochs", "1"]
TINY += ["--image-size", "8", "--device", "cpu", "--mixer", "none", "--quiet"]
METHOD = '''
"""Peers learn from the mean of all predictions."""
from metamixer.losses.functional import soft_cross_entropy
from torch import nn


class Mean(nn.Module):
    """``CE(z_i, y) + weight * CE(z_i, mean of all p)``."""

    needs = ()

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, outputs, targets, progress=None):
        mean = outputs.logits.softmax(-1).mean(0).detach()
        logits = outputs.logits
        return {"task": soft_cross_entropy(logits, targets), "mean": self.weight * soft_cross_entropy(logits, mean)}
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of somebody else's with a loss in a file of its own."""
    place = tmp_path / "somebody"
    place.mkdir()
    (place / "__init__.py").touch()
    (place / "mean.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    return "somebody.mean:Mean"


def test_a_loss_of_another_package_needs_no_line_of_ours(package, tmp_path):
    metamixer("train", *TINY, "--loss", package, "loss.weight=0.5", "--out", tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    assert Recipe.read(recipe, allow_imports=True).build_loss().weight == 0.5
    header = (tmp_path / "run" / "metrics.csv").read_text().partition("\n")[0]
    assert "mean" in header
    assert "did you mean 'weight'?" in metamixer("train", *TINY, "--loss", package, "loss.weigth=1", code=2).stderr


def test_one_line_of_the_registry_makes_a_loss_a_name(package, tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES.entries, "mean", Entry(package, "Peers learn from the mean.", "arXiv 0000.00000"))
    assert "0000.00000" in metamixer("list", "losses").stdout
    assert Recipe.of({"loss": {"name": "mean", "weight": 2}}).build_loss().weight == 2
    metamixer("train", *TINY, "--loss", "mean", "--out", tmp_path / "run")
    metamixer("evaluate", tmp_path / "run", "--device", "cpu")


METHODS = [("loss", "losses", LOSSES.entries[name], name) for name in LOSSES]
METHODS += [("mixer", "mixers", MIXERS.entries[name], name) for name in MIXERS]


@pytest.mark.parametrize(("kind", "folder", "entry", "name"), METHODS, ids=lambda value: str(value)[:20])
def test_every_method_has_its_test_its_golden_numbers_and_its_card(kind, folder, entry, name):
    file = entry.target.partition(":")[0].rpartition(".")[2]
    assert (ROOT / "tests" / folder / f"test_{file}.py").is_file()
    assert (ROOT / "tests" / "faults" / "golden" / f"{kind}-{name}.json").is_file()
    assert (ROOT / "docs" / ("methods" if kind == "loss" else "mixers") / f"{name}.md").is_file()
