"""Every method learns real images: a few hundred steps on the bundled set, alone and together with MetaMixer.

Chance is 10 %. The bar is far above it and far below what the methods reach: it finds a method that does not learn, not
one that learns a little less.
"""

import warnings

import pytest

from metamixer.datasets import load
from metamixer.named import LOSSES
from metamixer.recipe import Recipe
from metamixer.runs import train

STEPS_PER_EPOCH, EPOCHS = 62, 4
BAR = 0.45


@pytest.fixture(scope="module")
def data():
    return load("fashion-mini", train_limit=2000)


def recipe(loss, mixer, peers):
    needs = getattr(LOSSES[loss], "needs", ())
    per_class = ["train.per_class=4"] if "per-class" in needs else []
    teacher = [{"name": "resnet8", "frozen": True}] if "teacher" in needs else []
    content = {"data": {"name": "fashion-mini"}, "peers": [*peers, *teacher], "loss": loss, "mixer": mixer}
    weak = ["mixer.local_probability=0.3", "mixer.global_probability=0.3"] if mixer == "metamixer" else []
    return Recipe.of(
        content,
        [*weak, *per_class, f"train.epochs={EPOCHS}", "train.batch_size=32", "optim.lr=0.05", "train.validate_every=4"],
    )


def peers_for(loss):
    """Different networks where the method takes them: branches are of one architecture."""
    if "trunk" in getattr(LOSSES[loss], "needs", ()):
        return [{"name": "resnet8", "branches": 2}]
    return [{"name": "resnet8"}, {"name": "wrn_16_1"}]


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["none", "metamixer"])
@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns(loss, mixer, data, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = recipe(loss, mixer, peers_for(loss))
        result = train(made, tmp_path / "run", data=data)
    assert result.deployed.accuracy > BAR, result
    learning = [score for score, peer in zip(result.last.peers, made.members, strict=False) if not peer.frozen]
    assert all(score.accuracy > BAR for score in learning), result.last
