"""Study files: which runs they mean, and what is said where they do not fit."""

import pytest

from metamixer.config.yaml_file import RecipeError
from metamixer.studies import Study


def study(**content):
    base = {
        "data": {"name": "fashion-mini", "train_limit": 10},
        "train": {"epochs": 2},
        "peers": ["resnet8", "resnet8"],
    }
    return Study.of({"recipe": base, **content})


def test_every_combination_of_every_axis_and_seed():
    made = study(
        methods=["dml", "kdcl"],
        mixers={"plain": "none", "weak": {"name": "metamixer", "local_probability": 0.1}},
        networks={"small": ["resnet8", "resnet14"]},
        data={"few": {"train_limit": 5}},
        exclude=[{"methods": "kdcl", "mixers": "weak"}],
        seeds=[3, 5],
    )
    assert [cell.label for cell in made.cells[::2]] == [
        "dml + plain + small + few",
        "dml + weak + small + few",
        "kdcl + plain + small + few",
    ]
    assert [cell.seed for cell in made.cells] == [3, 5] * 3
    cell = made.cells[3]
    assert cell.recipe.train.seed == 5
    assert cell.recipe.mixer.settings == {"local_probability": 0.1}
    assert [peer.name for peer in cell.recipe.peers] == ["resnet8", "resnet14"]
    assert (cell.recipe.data.name, cell.recipe.data.train_limit) == ("fashion-mini", 5), "the rest of the section stays"
    assert len({cell.name for cell in made.cells}) == 6


def test_changes_as_on_the_command_line():
    made = study(methods={"slow": ["loss.temperature=2", "optim.lr=0.01"], "dml": "dml"}, changes=["train.epochs=7"])
    assert made.cells[0].recipe.build_loss().temperature == 2
    assert made.cells[0].recipe.optim.lr == 0.01
    assert {cell.recipe.train.epochs for cell in made.cells} == {7}


def test_settings_are_an_axis_of_changes():
    made = study(
        mixers=["none", "mixup"], settings={"short": ["train.epochs=3"], "long": ["train.epochs=5"]}, seeds=[0]
    )
    assert [cell.label for cell in made.cells] == ["none + short", "none + long", "mixup + short", "mixup + long"]
    assert [cell.recipe.train.epochs for cell in made.cells] == [3, 5, 3, 5]


def test_a_recipe_file_is_found_beside_the_study(tmp_path):
    (tmp_path / "base.yaml").write_text("train: {epochs: 9}")
    (tmp_path / "study.yaml").write_text("recipe: base.yaml\nmethods: [dml]\nseeds: [0]")
    assert Study.read(tmp_path / "study.yaml").cells[0].recipe.train.epochs == 9


def test_a_folder_is_of_one_recipe_alone():
    first, second = (study(methods=["dml"], changes=[f"train.epochs={n}"]).cells[0].name for n in (2, 3))
    assert first != second
    nasty = study(methods={"../../<b>": "dml"}).cells[0].name
    assert "/" not in nasty
    assert not nasty.startswith(".")


def test_the_baseline_keeps_the_other_axes():
    made = study(methods=["dml", "kdcl"], data={"a": {"seed": 0}, "b": {"seed": 1}}, baseline={"methods": "dml"})
    rows = {row: made.baseline_of(row) for row in made.rows}
    assert rows[("methods", "kdcl"), ("data", "b")] == (("methods", "dml"), ("data", "b"))
    assert rows[("methods", "dml"), ("data", "a")] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"method": ["dml"]}, "method: Extra inputs"),
        ({"methods": ["dmll"]}, "dmll: .*dml"),
        ({"methods": ["dml"], "baseline": {"methods": "kd"}}, "baseline: 'kd' is not one of methods; dml"),
        ({"methods": ["dml"], "baseline": {"loss": "dml"}}, "'loss' is not an axis; expected methods, mixers"),
        ({"metrics": ["speed"]}, "metrics: 'speed'; expected accuracy"),
        ({"compare": ["nll"], "metrics": ["accuracy"]}, "compare: 'nll' is not in metrics"),
        ({"seeds": [1, 1]}, "has one twice"),
        ({"seeds": []}, "seeds"),
        ({"recipe": {"train": {"epochs": -1}}, "methods": ["dml"]}, "dml: train.epochs"),
        ({"settings": {"x": {"train": {"epochs": 3}}}}, "settings.x: Input should be a valid list"),
        ({"settings": {"x": ["train.epochs"]}}, "x: 'train.epochs' is not an override"),
        ({"methods": {"x": ["optim.lrr=1"]}}, "x: optim.lrr"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told_with_its_place(content, message):
    with pytest.raises(RecipeError, match=message):
        study(**content)


def test_the_older_key_of_metrics_is_read():
    names = ["nll", "accuracy"]
    assert study(methods=["dml"], figures=names).content == study(methods=["dml"], metrics=names).content
