"""Every method learns real images: 300 steps on the bundled set, alone and together with MetaMixer.

Chance is 10 %. The bar is far above it and far below what the methods reach: it finds a method that does not learn, not
one that learns a little less. The networks are a quarter of the usual ones, so that all of it takes minutes.
"""

import warnings

import pytest

from metamixer.config.recipe import Recipe
from metamixer.config.registry import LOSSES
from metamixer.data import load
from metamixer.runs.classifier import Classifier
from metamixer.runs.run import train

PER_CLASS, EPOCHS = 107, 10  # a tenth is held out: 30 steps of 32 images an epoch
BAR = 0.45
NARROW = {"name": "resnet8", "widths": [8, 8, 16, 32]}
DEEPER = {"name": "resnet14", "widths": [8, 8, 12, 24]}


@pytest.fixture(scope="module")
def data():
    return load("fashion-mini", train_limit=PER_CLASS)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """A trained network for the methods that learn from one: from an untrained one there is nothing to learn."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    return str(train(recipe("independent", "none", [NARROW, DEEPER]), folder, data=data).model)


def recipe(loss, mixer, peers, teacher=None):
    needs = getattr(LOSSES[loss], "needs", ())
    per_class = ["train.per_class=4"] if "per-class" in needs else []
    frozen = [{**_architecture(teacher), "frozen": True, "weights": teacher}] if "teacher" in needs else []
    content = {"data": {"name": "fashion-mini"}, "peers": [*peers, *frozen], "loss": loss, "mixer": mixer}
    weak = ["mixer.local_probability=0.3", "mixer.global_probability=0.3"] if mixer == "metamixer" else []
    return Recipe.of(
        content,
        [*weak, *per_class, f"train.epochs={EPOCHS}", "train.batch_size=32", "optim.lr=0.05", "train.validate_every=5"],
    )


def _architecture(model):
    network = Classifier.load(model)
    return {"name": network.name, **network.options}


def peers_for(loss):
    """Different networks where the method takes them: branches are of one architecture."""
    if "trunk" in getattr(LOSSES[loss], "needs", ()):
        return [{**NARROW, "branches": 2}]
    return [NARROW, DEEPER]


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["none", "metamixer"])
@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns(loss, mixer, data, request, tmp_path):
    teacher = request.getfixturevalue("teacher") if "teacher" in getattr(LOSSES[loss], "needs", ()) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = recipe(loss, mixer, peers_for(loss), teacher)
        result = train(made, tmp_path / "run", data=data)
    assert result.deployed.accuracy > BAR, result
    learning = [score for score, peer in zip(result.last.peers, made.members, strict=False) if not peer.frozen]
    assert all(score.accuracy > BAR for score in learning), result.last
