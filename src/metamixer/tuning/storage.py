"""The storage of trials: an SQLite file of Optuna, which the processes of all trials open too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from metamixer.config.yaml_file import RecipeError, flat
from metamixer.core.seeding import derive
from metamixer.tuning.tune_file import Search

FILE = "trials.db"
_NAME = "search"


def opened(search: Search, folder: Path) -> optuna.Study:
    """Open the search in ``folder``, or create it.

    Raises:
        RecipeError: the folder has another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=_storage(folder),
        study_name=_NAME,
        direction=search.direction,
        pruner=pruner(search),
        load_if_exists=True,
    )
    known, here = study.user_attrs.get("search"), search.described()
    if known is None:
        study.set_user_attr("search", here)
    elif known != json.loads(json.dumps(here)):
        before, now = flat(known), flat(json.loads(json.dumps(here)))
        keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        lines = (f"  {key}: {before.get(key, 'not set')}, here {now.get(key, 'not set')}" for key in keys)
        said = f"{folder} has another search; accepted are more trials, or another --out:"
        raise RecipeError("\n".join([said, *lines]))
    return study


def trial_of(search: Search, folder: Path, number: int) -> optuna.Trial:
    """Trial ``number`` for its process, to report values and ask whether to stop."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # The settings of the trial are in the storage, so this sampler is not used.
    study = optuna.load_study(
        study_name=_NAME, storage=_storage(folder), sampler=RandomSampler(), pruner=pruner(search)
    )
    return optuna.Trial(study, study.trials[number]._trial_id)


def sampler(search: Search, number: int) -> BaseSampler:
    """The sampler of trial ``number``: its draws only depend on the number and on earlier trials."""
    seed = derive(search.content.seed, "tune", number) % 2**32
    if search.content.sampler == "random":
        return RandomSampler(seed)
    return TPESampler(n_startup_trials=search.content.startup, seed=seed)


def pruner(search: Search) -> BasePruner:
    """The pruner of a search; its steps are epochs."""
    content, epochs = search.content, search.epochs
    if content.pruner == "median":
        warmup = epochs // 5 if content.warmup is None else content.warmup
        return MedianPruner(n_startup_trials=content.startup, n_warmup_steps=warmup + 1)
    return HyperbandPruner(1, epochs) if content.pruner == "hyperband" else NopPruner()


def _storage(folder: Path) -> Any:
    url = URL.create("sqlite", database=str(folder.absolute() / FILE)).render_as_string()
    # Without a pool a connection is closed when its query ends: nobody has to close the storage, and forks share none.
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 100}, "poolclass": NullPool})
