"""One run of a study in its own process: train or resume it, and evaluate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from metamixer.studies.run_folder import finished, trained
from metamixer.studies.study_file import Measure


def follow_cell(
    recipe: Mapping[str, Any], folder: Path, measure: Measure, threads: int, allowed: Sequence[str] = ()
) -> None:
    """Train and evaluate a run, without repeating what is already done.

    Two processes may get the same run if a study was killed but its runs were not; the second one then waits.

    Args:
        recipe: the full recipe as plain values.
        folder: the run folder.
        measure: measurements after training.
        threads: number of threads of torch; results are only identical with the same number.
        allowed: allowed import paths, if the process did not inherit them.
    """
    import torch

    from metamixer.config.recipe import Recipe
    from metamixer.core import trusted_imports
    from metamixer.runs.run import train
    from metamixer.training.started import is_first_process

    trusted_imports.allow(*allowed)
    torch.set_num_threads(threads)
    if not is_first_process():  # with train.devices=N the first process holds the lock and evaluates
        train(Recipe.of(recipe), folder, resume=True)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not trained(folder):
            train(Recipe.of(recipe), folder, resume=True)
        if not finished(folder, measure):
            _measure(folder, measure)


def _measure(folder: Path, measure: Measure) -> None:
    from metamixer.runs.evaluate_run import assess_run
    from metamixer.runs.localize_run import localize_run

    wanted = localize_run if measure.localization else None
    assess_run(folder, robustness=measure.robustness, limit=measure.limit, localize=wanted)
