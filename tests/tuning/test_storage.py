"""The file of the trials: one search, whose proposals depend on the trials before and on nothing else."""

import optuna
import pytest
from optuna.pruners import HyperbandPruner, NopPruner
from optuna.trial import TrialState, create_trial

from metamixer.config.yaml_file import RecipeError
from metamixer.tuning.storage import opened, pruner, sampler, trial_of
from metamixer.tuning.tune_file import Search
from tests.tuning.conftest import CONTENT


def test_another_search_is_refused_by_its_differences(search, tmp_path):
    opened(search, tmp_path)
    opened(Search.of(CONTENT | {"trials": 9}), tmp_path)
    with pytest.raises(RecipeError, match=r"another search[^\n]*\n  pruner: median, here none$"):
        opened(Search.of(CONTENT | {"pruner": "none"}), tmp_path)
    with pytest.raises(RecipeError, match=r"recipe\.data\.train_limit: 20, here 21"):
        opened(Search.of(CONTENT | {"changes": ["data.train_limit=21"]}), tmp_path)


def test_a_folder_of_any_name_holds_the_file(search, tmp_path):
    folder = tmp_path / "50% of it? #1 [x]"
    folder.mkdir()
    opened(search, folder)
    assert (folder / "trials.db").is_file()


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_proposals_depend_on_the_trials_before_alone(tmp_path, kind):
    search = Search.of(CONTENT | {"sampler": kind})
    found = []
    for name in ("whole", "reopened"):
        (tmp_path / name).mkdir()
        study = opened(search, tmp_path / name)
        for number in range(6):
            if name == "reopened":
                study = opened(search, tmp_path / name)
            study.sampler = sampler(search, number)
            trial = study.ask(search.space)
            study.tell(trial, -abs(trial.params["optim.lr"] - 0.05))
        found.append([trial.params for trial in study.trials])
    assert found[0] == found[1]
    assert len({params["optim.lr"] for params in found[0]}) == 6


def test_the_median_spares_first_trials_and_first_epochs(search, tmp_path):
    study = opened(search, tmp_path)
    for number in range(2):
        values = dict.fromkeys((1, 2, 3), 0.9)
        given = {"params": {"optim.lr": 0.1, "loss.temperature": "1.0"}, "distributions": search.space}
        if number == 1:
            study.ask(search.space)
            trial = trial_of(search, tmp_path, 1)
            trial.report(0.1, 2)
            assert not trial.should_prune()  # one trial has ended, two are wanted
            study.tell(1, state=TrialState.PRUNED)
        study.add_trial(create_trial(value=0.9, intermediate_values=values, **given))
    study.ask(search.space)
    trial = trial_of(search, tmp_path, len(study.trials) - 1)
    trial.report(0.1, 1)
    assert not trial.should_prune()  # the first epoch is the warm-up
    trial.report(0.1, 2)
    assert trial.should_prune()


def test_pruners():
    assert isinstance(pruner(Search.of(CONTENT | {"pruner": "none"})), NopPruner)
    assert isinstance(pruner(Search.of(CONTENT | {"pruner": "hyperband"})), HyperbandPruner)
    assert optuna.logging.get_verbosity() >= optuna.logging.WARNING
