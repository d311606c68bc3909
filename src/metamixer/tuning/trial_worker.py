"""One trial of a search in its own process: train or resume it, and report its values to the search."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from filelock import FileLock

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.evaluation.evaluate import Report
from metamixer.training.callbacks import EpochRecord, Start, StepRecord
from metamixer.tuning.storage import trial_of
from metamixer.tuning.tune_file import Metric, Search

if TYPE_CHECKING:
    import optuna


def run_trial(search: Search, folder: Path, number: int, threads: int) -> None:
    """Train trial ``number`` in ``folder/trials/NUMBER``, and store its value, or that it was stopped early.

    Two processes may get the same trial if a search was killed but its trials were not; the second one then waits.
    """
    import optuna
    import torch
    from optuna.trial import TrialState

    from metamixer.runs.run import train
    from metamixer.training.optimizer_step import NotFiniteError
    from metamixer.training.started import is_first_process

    torch.set_num_threads(threads)
    place = trial_folder(folder, number)
    if not is_first_process():  # with train.devices=N the first process holds the lock and reports
        train(search.recipe(trial_of(search, folder, number).study.trials[number].params), place, resume=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(place.name + ".lock")):
        trial = trial_of(search, folder, number)
        frozen = trial.study.trials[number]
        if frozen.state.is_finished():
            return
        recipe = search.recipe(frozen.params)
        watch = _Watch(trial, search.content.metric, recipe)
        try:
            if not (place / "report.json").is_file():
                train(recipe, place, resume=True, callbacks=(watch,))
            trial.study.tell(number, watch.last())
        except optuna.TrialPruned:
            trial.study.tell(number, state=TrialState.PRUNED)
        except NotFiniteError as error:
            trial.set_user_attr("diverged", str(error))
            trial.study.tell(number, state=TrialState.PRUNED)


def trial_folder(folder: Path, number: int) -> Path:
    """The run folder of a trial."""
    return folder / "trials" / f"{number:04}"


def value_of(report: Report, metric: Metric, learners: list[int]) -> float:
    """The metric of the peers that learn, or of the ensemble."""
    peers = [report.peers[index] for index in learners]
    return {
        "accuracy": fmean(one.accuracy for one in peers),
        "nll": fmean(one.nll for one in peers),
        "best_peer": max(one.accuracy for one in peers),
        "ensemble": report.ensemble.accuracy,
        "ensemble_nll": report.ensemble.nll,
    }[metric]


class _Watch:
    """Stores the metric after every epoch, and stops training if the pruner decides so."""

    def __init__(self, trial: optuna.Trial, metric: Metric, recipe: Recipe) -> None:
        self._trial, self._metric, self._epochs = trial, metric, recipe.train.epochs
        self._learners = [index for index, one in enumerate(recipe.members) if not one.frozen]

    def on_start(self, start: Start) -> None:
        """Nothing is stored."""

    def on_step(self, record: StepRecord) -> None:
        """Nothing is stored."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Store the metric and ask the pruner; a repeated epoch of a resumed run keeps its value, which is the same."""
        import optuna

        if record.val is None:
            return
        value = value_of(record.val, self._metric, self._learners)
        if not math.isfinite(value):
            raise optuna.TrialPruned()
        if record.epoch not in self._trial.study.trials[self._trial.number].intermediate_values:
            self._trial.report(value, record.epoch)
        if record.epoch < self._epochs and self._trial.should_prune():
            raise optuna.TrialPruned()

    def on_end(self) -> None:
        """Nothing is stored."""

    def last(self) -> float:
        """The metric after the last epoch."""
        values = self._trial.study.trials[self._trial.number].intermediate_values
        if not values:
            raise RecipeError("a search needs validation images, and there are none; data.val_share=0.1 holds them out")
        return values[max(values)]
