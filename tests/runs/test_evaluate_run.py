"""Full evaluation of a run's folder."""

import json
import shutil

import pytest
import torch

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.data import DataError
from metamixer.evaluation.localization.localize import Localization
from metamixer.runs.evaluate_run import FILE, assess_run
from metamixer.runs.run import evaluate_run, train

TINY = ["data.train_limit=12", "data.image_size=16", "peers.0.name=resnet8", "peers.1.name=resnet8", "train.epochs=1",
        "train.batch_size=40", "train.accelerator=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    train(Recipe.of({}, TINY), folder)
    return folder


def test_what_is_returned_is_what_is_written_and_what_the_run_said(run):
    found = assess_run(run)
    assert json.loads((run / FILE).read_text()) == json.loads(json.dumps(found.as_dict()))
    assert [each.kind for each in found.networks] == ["peer", "peer", "ensemble", "deployed"]
    said = json.loads((run / "report.json").read_text())["last_epoch"]
    assert [each.accuracy for each in found.networks[:2]] == [each["accuracy"] for each in said["peers"]]
    quick = evaluate_run(run, "val")
    assert [each.accuracy for each in assess_run(run, "val").networks[:2]] == [each.accuracy for each in quick.peers]


def test_a_run_that_has_not_ended_has_no_deployed_network(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    told = []
    found = assess_run(
        tmp_path / "copy",
        progress=lambda *words: told.append(words),
        localize=lambda run: Localization(images=len(run.recipe.names)),
    )
    assert [each.kind for each in found.networks] == ["peer", "peer", "ensemble"]
    assert found.localization.images == 2
    assert told[-1] == ("validation images", 600, 600)
    assert ("images", 1000, 1000) in told
    assert json.loads((tmp_path / "copy" / "evaluation.json").read_text())["localization"]["images"] == 2
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        assess_run(tmp_path / "copy")


def test_metrics_do_not_depend_on_what_was_drawn_before(run):
    torch.manual_seed(5)
    first = assess_run(run, robustness=["corruptions", "fgsm"], limit=4).as_dict()
    torch.manual_seed(6)
    assert assess_run(run, robustness=["corruptions", "fgsm"], limit=4).as_dict() == first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"robustness": ["rain"]}, "'rain': expected some of corruptions"),
        ({"limit": 0}, "limit 0: expected at least 1 image"),
        ({"cifar_c": "x", "split": "val"}, "expected split test"),
    ],
)
def test_settings_that_do_not_fit(settings, message, run):
    with pytest.raises(RecipeError, match=message):
        assess_run(run, **settings)
