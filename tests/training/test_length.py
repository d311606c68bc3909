"""How long a training is: patience, and more epochs after its end."""

import json

import pytest
import torch

from metamixer import Optim
from metamixer.config.recipe import Recipe
from metamixer.runs.run import longer, read_recipe, train
from metamixer.training.settings import RunInfo, TrainSettings
from metamixer.training.trainer import TrainingError
from tests import toys

SCHEDULE = Optim(lr=1.0, warmup=0.5, schedule="constant")


class Rates:
    def __init__(self):
        self.rates, self.epochs = [], []

    def on_start(self, start): ...
    def on_end(self): ...

    def on_step(self, record):
        self.rates.append(record.lr)

    def on_epoch(self, record):
        self.epochs.append((record.epoch, [score.accuracy for score in record.val.peers] if record.val else None))


def flat_validation():
    """Labels that do not depend on the images: what is learned does not help, so the first epochs stay the best."""
    held = toys.images(12)
    return [type(toys.validation()[0])(torch.zeros(12, 1, 8, 8), held.labels)]


def test_patience_stops_after_epochs_that_are_not_better(tmp_path):
    seen = Rates()
    made = toys.trainer(tmp_path, 40, patience=3, callbacks=[seen])
    fitted = made.fit(toys.loader(), flat_validation())
    assert fitted.epochs == len(seen.epochs) == fitted.best.epoch + 3 < 40
    again = toys.trainer(tmp_path, 40, patience=3).fit(toys.loader(), flat_validation(), resume=True)
    assert again == fitted, "a training that has stopped is not begun again"


def test_patience_resumes_to_the_same_end(tmp_path):
    whole = toys.trainer(tmp_path / "whole", 40, patience=4)
    wanted = whole.fit(toys.loader(), flat_validation())
    with pytest.raises(ConnectionError):
        toys.trainer(tmp_path / "broken", 40, patience=4).fit(toys.StopAt(toys.loader(), 17), flat_validation())
    rest = toys.trainer(tmp_path / "broken", 40, patience=4)
    assert rest.fit(toys.loader(), flat_validation(), resume=True) == wanted
    assert all(torch.equal(value, toys.weights(rest)[name]) for name, value in toys.weights(whole).items())


def test_patience_without_validation_is_an_error():
    with pytest.raises(TrainingError, match="patience=2 needs validation data"):
        toys.trainer(patience=2).fit(toys.loader())


@pytest.mark.parametrize("settings", [{"patience": 0}, {"epochs": 5, "continued": (5,)}, {"continued": (4, 2)}])
def test_nonsense_is_an_error(settings):
    with pytest.raises(ValueError, match=list(settings)[-1]):
        TrainSettings(**settings)


def test_a_schedule_starts_anew_where_a_run_was_continued():
    settings = TrainSettings(epochs=10, continued=(4, 8))
    assert [settings.schedule(at) for at in (0, 2, 4, 6, 8, 9, 10)] == [0, 0.5, 0, 0.5, 0, 0.5, 1]


def test_an_ended_training_is_continued_with_a_new_schedule(tmp_path):
    first, second = Rates(), Rates()
    toys.trainer(tmp_path, 2, callbacks=[first], info=RunInfo({"recipe": "a"})).fit(toys.loader())
    facts = {"recipe": "b", "recipe_before": ["a"]}
    more = toys.trainer(tmp_path, 4, callbacks=[second], info=RunInfo(facts), continued=(2,))
    more.fit(toys.loader(), resume=True)
    assert [epoch for epoch, _ in second.epochs] == [3, 4]
    assert second.rates == pytest.approx(first.rates), "as long as the first, so the same rates"


TINY = ["data.train_limit=12", "peers.0.name=resnet8", "peers.1.name=resnet8", "peers.0.widths=[2,2,4,4]",
        "peers.1.widths=[2,2,4,4]", "train.batch_size=40", "optim.lr=0.02"]  # fmt: skip


@pytest.mark.timeout(240)
def test_a_run_that_has_ended_is_given_more_epochs(tmp_path):
    ended, asked = Recipe.of({}, [*TINY, "train.epochs=1"]), Recipe.of({}, [*TINY, "train.epochs=2"])
    assert train(ended, tmp_path / "run").epochs == 1
    recipe = longer(asked, tmp_path / "run")
    assert recipe.train.continued == (1,)
    assert recipe.before.digest == ended.digest
    assert recipe.digest not in (ended.digest, asked.digest)
    assert train(recipe, tmp_path / "run", resume=True).epochs == 2
    assert read_recipe(tmp_path / "run").digest == recipe.digest
    assert longer(recipe, tmp_path / "run") == recipe
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_only_more_epochs_continue_a_run():
    ended = Recipe.of({}, [*TINY, "train.epochs=2"])
    for words in (["train.epochs=1"], ["train.epochs=3", "optim.lr=0.1"]):
        asked = Recipe.of({}, [*TINY, *words])
        assert asked.continued(ended) == asked


def test_checkpointing_reaches_the_peers():
    recipe = Recipe.of({}, [*TINY, "train.checkpointing=true"])
    assert recipe.digest != Recipe.of({}, TINY).digest
    cohort = recipe.build_cohort(10, 1, (28, 28))
    plain = Recipe.of({}, TINY).build_cohort(10, 1, (28, 28))
    images = torch.rand(4, 1, 28, 28)
    for made in (cohort, plain):
        made.train()(images).logits.square().sum().backward()
    for own, wanted in zip(cohort.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, wanted.grad)
