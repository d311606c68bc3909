"""What the file of a search may say, and that what cannot be searched is said before the first trial."""

import re
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError, as_yaml
from metamixer.tuning.tune_file import Search

SPACE = {
    "optim.lr": {"low": 0.001, "high": 0.5, "log": True},
    "train.batch_size": {"low": 16, "high": 64, "step": 16},
    "loss.temperature": {"low": 1, "high": 4.0},
    "mixer.box": ["batch", "sample"],
    "mixer.stages": [None, [0, 1]],
}


def test_ranges_and_choices_become_recipes(tmp_path):
    (tmp_path / "base.yaml").write_text(as_yaml({"loss": "dml", "mixer": "metamixer", "train": {"epochs": 30}}))
    content = {"recipe": "base.yaml", "changes": ["train.seed=3"], "space": SPACE}
    (tmp_path / "tune.yaml").write_text(as_yaml(content))
    search = Search.read(tmp_path / "tune.yaml")
    assert search.space == {
        "optim.lr": FloatDistribution(0.001, 0.5, log=True),
        "train.batch_size": IntDistribution(16, 64, step=16),
        "loss.temperature": FloatDistribution(1.0, 4.0),
        "mixer.box": CategoricalDistribution(["batch", "sample"]),
        "mixer.stages": CategoricalDistribution(["null", "[0, 1]"]),
    }
    assert (search.epochs, search.direction) == (30, "maximize")
    values = {"optim.lr": 1e-3, "train.batch_size": 48, "loss.temperature": 2.5}
    values |= {"mixer.box": "sample", "mixer.stages": "[0, 1]"}
    recipe = search.recipe(values)
    assert (recipe.optim.lr, recipe.train.batch_size, recipe.train.seed) == (0.001, 48, 3)
    assert (recipe.build_loss().temperature, recipe.build_mixer().stages) == (2.5, (0, 1))
    base = Recipe.of({"loss": "dml", "mixer": "metamixer"}, ["train.epochs=30", "train.seed=3"])
    assert search.recipe({}).digest == base.digest
    (tmp_path / "again.yaml").write_text(search.as_yaml())
    again = Search.read(tmp_path / "again.yaml")
    assert (again.space, again.described()) == (search.space, search.described())


def test_the_file_of_the_documentation_fits(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "tune.md").read_text(encoding="utf-8")
    (tmp_path / "tune.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    (tmp_path / "photos.yaml").write_text("loss: dml")
    assert len(Search.read(tmp_path / "tune.yaml").space) == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {}}, "space"),
        ({"space": {"optim.rate": {"low": 1, "high": 2}}}, "optim.rate: no such option"),
        ({"space": {"optim.lr": {"low": 2, "high": 1}}}, "space.optim.lr"),
        ({"space": {"optim.lr": {"low": 0.0, "high": 1.0, "log": True}}}, "space.optim.lr"),
        ({"space": {"optim.lr": {"low": 0.1}}}, "space.optim.lr.high"),
        ({"space": {"optim.lr": {"low": -1.0, "high": 1.0}}}, "with optim.lr=-1.0: optim.lr"),
        ({"space": {"loss": ["dml", "mld"]}}, "with loss=mld: loss"),
        ({"space": {"optim.lr": []}}, "space.optim.lr"),
        ({"space": {"loss": ["dml", "dml"]}}, "space.loss: a value occurs twice"),
        ({"space": {"train.checkpoint_every": [1, 2], "optim.lr": [0.1, 0.2]}}, None),
        ({"space": {"train.timeout": [5.0, 10.0]}}, "train.timeout changes nothing"),
        ({"space": {"train.epochs": [5, 10]}, "pruner": "hyperband"}, "trials of one length"),
        ({"sampler": "grid"}, "sampler"),
        ({"trials": 0}, "trials"),
        ({"metric": "test"}, "metric"),
        ({"ranges": {}}, "ranges"),
        ({"recipe": {"loss": "mld"}}, "loss: 'mld' is not a loss"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_said_before_the_first_trial(changes, said):
    content = {"recipe": {"loss": "dml"}, "space": {"optim.lr": {"low": 0.1, "high": 0.2}}} | changes
    if said is None:
        Search.of(content)
        return
    with pytest.raises(RecipeError) as raised:
        Search.of(content)
    assert said in str(raised.value)
