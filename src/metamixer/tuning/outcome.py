"""The output of a search: a table, plots, and the best recipe."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from metamixer.core.files import write_whole
from metamixer.core.text import spreadsheet_cell
from metamixer.tuning.tune_file import Search

PLOTS = {
    "history.png": "optimization_history",
    "curves.png": "intermediate_values",
    "importance.png": "param_importances",
}


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The completed trials, the best first; ties in order of their numbers."""
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return sorted(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def importances(study: optuna.Study) -> dict[str, float]:
    """The importance of each setting for the value of a trial, as shares (PED-ANOVA, arXiv 2304.10255).

    Empty if there are fewer than two trials, or all have the same value.
    """
    done = ranked(study)
    if len({trial.value for trial in done}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.importance.get_param_importances(study)


def write_outcome(search: Search, study: optuna.Study, folder: Path) -> None:
    """Write ``trials.csv``, and if a trial is complete, ``best.yaml`` and the plots."""
    write_whole(folder / "trials.csv", _table(search, study), newline="")
    if not (done := ranked(study)):
        return
    write_whole(folder / "best.yaml", search.recipe(done[0].params).as_yaml())
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    with warnings.catch_warnings(), mpl.rc_context():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for name, kind in PLOTS.items():
            if kind == "param_importances" and not importances(study):
                continue
            more: dict[str, Any] = {} if kind == "intermediate_values" else {"target_name": search.content.metric}
            axes = getattr(plots, f"plot_{kind}")(study, **more)
            axes.figure.savefig(folder / name, dpi=120, bbox_inches="tight")
            pyplot.close(axes.figure)


def _table(search: Search, study: optuna.Study) -> str:
    """A CSV table with a row for each trial: number, state, value, last epoch, seconds, settings, reason of failure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", search.content.metric, "epoch", "seconds", *search.space, "note"])
    for trial in study.get_trials(deepcopy=False):
        values, took = trial.intermediate_values, trial.duration
        row = [trial.number, trial.state.name.lower(), trial.value, max(values, default=None)]
        row += [None if took is None else round(took.total_seconds(), 1)]
        settings = [trial.params.get(key) for key in search.space]
        note = trial.user_attrs.get("fault") or trial.user_attrs.get("diverged", "")
        cells = [*row, *settings, " ".join(note.split())]
        writer.writerow([spreadsheet_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()
