"""What a training costs is said after a few of its steps, with what shortens it where that is hours."""

import json
from types import SimpleNamespace

import pytest
import torch

from metamixer.cli import training_cost
from metamixer.cli.training_cost import Measured, TrainingCost, suggestions
from metamixer.config.recipe import Recipe
from metamixer.training.callbacks import Start, StepRecord
from tests.command import metamixer


def said_of(seconds, changes=(), size=(64, 64), step=0, val=300, only=False, first=5.0, steps=10):
    """What is said of a training of steps that take so long, of 640 images in batches of 64."""
    now, said = [0.0], []
    images = [None] * 640
    data = SimpleNamespace(train=images, val=None if val is None else [None] * val, size=size)
    recipe = Recipe.of({}, ["train.batch_size=64", *changes])
    cost = TrainingCost(recipe, data, said.append, "cpu", only, clock=lambda: now[0])
    cost.on_start(Start(recipe.train.epochs, 10, step, ("a", "b")))
    for number in range(step, min(step + steps, 10 * recipe.train.epochs)):
        now[0] += first if number == step else seconds
        cost.on_step(
            StepRecord(1, number + 1, 64, {"a": torch.ones(2)}, 0.1, 0.0, first if number == step else seconds)
        )
    return said


def test_an_epoch_and_the_training_with_validation():
    # Ten steps of 0.6 s, and 300 images at a third of the cost: 6 + 0.6 * 300 / 64 / 3 = 6.94 s.
    (said,) = said_of(0.6, ["train.epochs=100"])
    threads = torch.get_num_threads()
    shown = f"{threads} thread{'s' if threads > 1 else ''}"
    assert said == f"an epoch of 10 steps takes about 7 s, the training about 12 min (107 images/s, {shown})"
    (every_tenth,) = said_of(0.6, ["train.epochs=100", "train.validate_every=10"])
    assert "about 6 s, the training about 10 min" in every_tenth
    (rest,) = said_of(0.6, ["train.epochs=100"], step=500, val=None)
    assert "about 6 s, the rest of the training about 5 min" in rest


def test_short_trainings_are_not_worth_a_line():
    assert said_of(0.6, ["train.epochs=5"]) == []
    assert said_of(0.6, ["train.epochs=100"], steps=4) == [], "two seconds have not passed"
    assert len(said_of(11.0, ["train.epochs=100"], steps=2)) == 2, "a slow step is enough"


def test_what_shortens_hours(monkeypatch):
    monkeypatch.setattr(training_cost, "slowdown", lambda precision, device: 0.52)
    said = said_of(0.6, ["train.epochs=1000"], size=(224, 160), val=None)
    assert "the training about 1 h 40 min" in said[0]
    assert said[1] == (
        "shorter by: train.precision=bf16 (a convolution takes 0.5 of the time here); data.image_size=112x80 (about a "
        "quarter of the time); train.epochs=500 (half); smaller or fewer networks, or a GPU"
    )
    data = SimpleNamespace(size=(64, 64))
    assert suggestions(Recipe.of({}, ["train.precision=bf16", "train.epochs=1"]), data, "cuda") == [
        "smaller or fewer networks"
    ]


@pytest.mark.parametrize("steps", [1, 10])
def test_alone_it_says_the_cost_of_any_training(steps):
    with pytest.raises(Measured):
        said_of(0.1, ["train.epochs=1"], only=True, steps=steps) if steps > 1 else _one_step()


def _one_step():
    recipe = Recipe.of({}, ["train.epochs=1"])
    cost = TrainingCost(recipe, SimpleNamespace(train=[0], val=None, size=(8, 8)), print, "cpu", only=True)
    cost.on_start(Start(1, 1, 0, ("a",)))
    cost.on_step(StepRecord(1, 1, 1, {}, 0.1, 0.0, 0.2))


TINY = ["data.train_limit=20", "data.image_size=12", "train.batch_size=50", "mixer=none"]


def test_a_dry_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = metamixer("train", "--peers", "resnet8,resnet8", "--epochs", "1", "--dry-run", "--threads", "1", *TINY).output
    assert "an epoch of 4 steps takes about" in out
    assert "1 thread)" in out
    assert list(tmp_path.iterdir()) == []
    assert "accepted without --resume" in metamixer("train", "--resume", "x", "--dry-run", code=2).output


def test_a_run_keeps_its_threads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = torch.get_num_threads()
    try:
        metamixer("train", "--peers", "resnet8", "--epochs", "1", "--threads", "3", "--out", "run", *TINY)
        assert json.loads((tmp_path / "run/environment.json").read_text())["threads"] == 3
        torch.set_num_threads(usual)
        metamixer("train", "--resume", "run", "--epochs", "2")
        assert json.loads((tmp_path / "run/environment.json").read_text())["threads"] == 3
    finally:
        torch.set_num_threads(usual)
    words = ["train", "--peers", "resnet8", "--threads", "2", "train.devices=2", *TINY]
    assert "--threads 2: for one process only" in metamixer(*words, code=2).output
