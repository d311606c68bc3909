"""A peer's section: what goes together, and what of it a checksum holds."""

import pytest

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.training.peer_settings import PeerSettings


def peers(**settings):
    return Recipe.of({"peers": [{"name": "resnet8", **settings}, "resnet8"]})


@pytest.mark.parametrize(("text", "stages"), [("stem", 0), ("stage2", 2), ("stem..stage12", 12)])
def test_stages_that_do_not_learn(text, stages):
    found = peers(freeze=text, freeze_epochs=3, lr=0.01, weight_decay=0, stages=["stage1", "stage2"])
    assert found.peer_settings == (PeerSettings(0.01, 0.0, stages, 3, ("stage1", "stage2")), PeerSettings())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": "stage0"}, r"peers\.0\.freeze: 'stage0'; stem, stage2 or stem\.\.stage2 are accepted"),
        ({"freeze": "all"}, "'all'; stem, stage2"),
        ({"freeze_epochs": 2}, "freeze_epochs=2 without freeze"),
        ({"freeze": "stem", "freeze_epochs": 0}, "freeze_epochs"),
        ({"freeze": "stem", "frozen": True}, "freeze=stem with frozen=true"),
        ({"lr": 0.1, "frozen": True}, "lr=0.1 with frozen=true"),
        ({"lr": 0}, r"peers\.0\.lr"),
        ({"weight_decay": -1}, r"peers\.0\.weight_decay"),
        ({"classes": "natural"}, "classes=natural is for frozen networks"),
        ({"classes": "alphabet", "frozen": True}, r"peers\.0\.classes"),
    ],
)
def test_what_does_not_go_together(settings, words):
    with pytest.raises(RecipeError, match=words):
        peers(**settings)


def test_what_is_not_used_is_in_no_checksum():
    off = {"freeze": None, "freeze_epochs": None, "lr": None, "weight_decay": None, "classes": None}
    assert peers(**off).digest == peers().digest
    digests = {peers(**one).digest for one in ({"freeze": "stem"}, {"lr": 0.01}, {"weight_decay": 0.0}, {})}
    assert len(digests) == 4
    assert Recipe.of({}, ["optim.layer_decay=1"]).digest == Recipe().digest
