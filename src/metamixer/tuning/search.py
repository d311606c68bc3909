"""Conduct a search, from its file to the best recipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from metamixer.config.yaml_file import RecipeError, is_by_hand
from metamixer.core.files import write_whole
from metamixer.core.machine import cores
from metamixer.runs.before_data import check_before_data
from metamixer.studies.child_process import Child, Halted, fits, hand_on, signals, stop
from metamixer.studies.forks import Forks
from metamixer.tuning.outcome import write_outcome
from metamixer.tuning.storage import opened, sampler
from metamixer.tuning.tune_file import Search

_HOPELESS = 3
"""Number of failed trials, without any success, after which the search stops."""


class AllFailed(RuntimeError):
    """All first trials failed."""


def tune(
    search: Search,
    folder: Path,
    *,
    trials: int | None = None,
    jobs: int = 1,
    threads: int | None = None,
    nice: int = 0,
    ended: Callable[[optuna.Study, FrozenTrial], None] = lambda *_: None,
) -> optuna.Study:
    """Run the trials of a search and write the results.

    Every trial is a process with an ordinary run folder, ``trials/NUMBER``. The same call resumes a search that was
    stopped or killed: started trials continue from their checkpoints. With one job the results are the same as without
    interruption.

    Args:
        search: the search.
        folder: folder for ``trials.db``, ``trials/``, ``logs/``, ``trials.csv``, ``best.yaml`` and the plots.
        trials: total number of trials, including earlier calls; None: that of the file.
        jobs: number of parallel trials, fewer while memory is short.
        threads: number of threads per trial; None: the cores divided by ``jobs``.
        nice: increment of the niceness of trials.
        ended: called when a trial has ended.

    Raises:
        RecipeError: the folder has another search, or another call uses it.
        AllFailed: all first trials failed.
        Halted: a signal was received.
    """
    if jobs < 1 or (threads is not None and threads < 1):
        raise RecipeError(f"jobs={jobs}, threads={threads}: accepted are numbers from 1")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout:
        raise RecipeError(f"{folder}: another process works on this search") from None
    with lock:
        study = opened(search, folder)
        check_before_data(search.recipe({}))
        if not is_by_hand(folder / "search.yaml"):  # it may be the given file itself
            write_whole(folder / "search.yaml", search.as_yaml())
        _run(search, study, folder, trials or search.content.trials, jobs, threads or _share(jobs), nice, ended)
        write_outcome(search, study, folder)
    return study


def _run(
    search: Search,
    study: optuna.Study,
    folder: Path,
    trials: int,
    jobs: int,
    threads: int,
    nice: int,
    ended: Callable[[optuna.Study, FrozenTrial], None],
) -> None:
    waiting = _begun(search, study)
    running: dict[int, Child] = {}
    memory: int | None = None
    with signals() as received, Forks("metamixer.tuning", threads) as forks:
        try:
            while running or ((waiting or _room(search, study) < trials) and not received):
                children = list(running.values())
                more = not received and (bool(waiting) or _room(search, study) < trials)
                if received:
                    hand_on(children, received[0])
                elif more and len(running) < jobs and fits(children, memory):
                    number = waiting.pop(0) if waiting else _asked(search, study)
                    running[number] = _start(search, folder, number, forks, nice)
                    continue
                for number, child in list(running.items()):
                    if (found := child.look()) is None:
                        continue
                    del running[number]
                    memory = max(found.bytes or 0, memory or 0) or None
                    if received:
                        continue
                    if found.fault is not None:
                        _failed(study, number, found.fault)
                    ended(study, study.trials[number])
                    _check_hope(study)
                time.sleep(0.1)
        finally:
            stop(list(running.values()))
        if received:
            raise Halted(received[0])


def _share(jobs: int) -> int:
    return max(1, cores() // jobs)


def _room(search: Search, study: optuna.Study) -> int:
    """The number of trials so far, without those that were killed before all settings were drawn."""
    return sum(search.space.keys() <= trial.params.keys() for trial in study.get_trials(deepcopy=False))


def _begun(search: Search, study: optuna.Study) -> list[int]:
    """The unfinished trials of a search that was stopped."""
    found = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if search.space.keys() <= trial.params.keys():
            found.append(trial.number)
        else:
            study.tell(trial.number, state=TrialState.FAIL)
    return found


def _asked(search: Search, study: optuna.Study) -> int:
    study.sampler = sampler(search, _room(search, study))
    return study.ask(search.space).number


def _start(search: Search, folder: Path, number: int, forks: Forks, nice: int) -> Child:
    content = search.content.model_dump(mode="json") | {"recipe": search.base, "changes": []}
    job = {"search": content, "folder": str(folder), "number": number, "threads": forks.threads, "nice": nice}
    return Child.start(forks, job, folder / "logs" / f"{number:04}.txt")


def _failed(study: optuna.Study, number: int, fault: str) -> None:
    trial = study.trials[number]
    if not trial.state.is_finished():
        study._storage.set_trial_user_attr(trial._trial_id, "fault", fault)
        study.tell(number, state=TrialState.FAIL)


def _check_hope(study: optuna.Study) -> None:
    failed = [trial for trial in study.trials if "fault" in trial.user_attrs]
    good = any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials)
    if not good and len(failed) >= _HOPELESS:
        raise AllFailed(f"the first {len(failed)} trials failed: {failed[-1].user_attrs['fault']}")
