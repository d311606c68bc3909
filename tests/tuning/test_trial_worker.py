"""One trial: its value is that of the validation images, and it stops where the pruner says so."""

import json

import pytest
from optuna.trial import TrialState, create_trial

from metamixer.config.yaml_file import RecipeError
from metamixer.evaluation.evaluate import Report, Score
from metamixer.tuning.storage import opened
from metamixer.tuning.trial_worker import run_trial, trial_folder, value_of
from metamixer.tuning.tune_file import Search
from tests.tuning.conftest import CONTENT


def test_the_metric_is_of_the_peers_that_learn():
    numbers = (("0", 0.5, 2.0), ("1", 0.7, 1.0), ("2", 0.9, 0.1))
    peers = tuple(Score(name, accuracy=accuracy, nll=nll) for name, accuracy, nll in numbers)
    report = Report(peers, Score("ensemble", accuracy=0.8, nll=0.7))
    metrics = ("accuracy", "best_peer", "nll", "ensemble", "ensemble_nll")
    found = {metric: value_of(report, metric, [0, 1]) for metric in metrics}
    assert found == pytest.approx({"accuracy": 0.6, "best_peer": 0.7, "nll": 1.5, "ensemble": 0.8, "ensemble_nll": 0.7})


def epochs(folder, number):
    return [json.loads(line) for line in (trial_folder(folder, number) / "metrics.jsonl").read_text().splitlines()]


def test_a_trial_reports_every_epoch_and_ends_with_the_last(search, tmp_path):
    study = opened(search, tmp_path)
    number = study.ask(search.space).number
    run_trial(search, tmp_path, number, 1)
    run_trial(search, tmp_path, number, 1)  # has ended: nothing is done again
    trial = opened(search, tmp_path).trials[number]
    means = [sum(peer["accuracy"] for peer in row["val"]["peers"]) / 2 for row in epochs(tmp_path, number)]
    assert trial.intermediate_values == pytest.approx(dict(enumerate(means, 1)))
    assert trial.value == trial.intermediate_values[3]
    assert trial.state == TrialState.COMPLETE


def test_a_trial_that_is_worse_than_the_median_stops(search, tmp_path):
    study = opened(search, tmp_path)
    given = {"params": {"optim.lr": 0.1, "loss.temperature": "1.0"}, "distributions": search.space}
    for _ in range(2):
        study.add_trial(create_trial(value=1.0, intermediate_values={1: 1.0, 2: 1.0, 3: 1.0}, **given))
    run_trial(search, tmp_path, study.ask(search.space).number, 1)
    trial = opened(search, tmp_path).trials[2]
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1, 2]
    assert not (trial_folder(tmp_path, 2) / "report.json").exists()


def test_a_training_that_diverges_is_a_bad_trial_and_no_failure(tmp_path):
    search = Search.of(CONTENT | {"space": {"optim.lr": [1e30]}})
    study = opened(search, tmp_path)
    run_trial(search, tmp_path, study.ask(search.space).number, 1)
    (trial,) = opened(search, tmp_path).trials
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["diverged"]


def test_without_validation_images_there_is_no_value(tmp_path):
    search = Search.of(CONTENT | {"changes": ["data.val_share=0", "train.epochs=1"]})
    study = opened(search, tmp_path)
    with pytest.raises(RecipeError, match=r"data\.val_share=0\.1"):
        run_trial(search, tmp_path, study.ask(search.space).number, 1)
