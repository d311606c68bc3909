"""One run of a study in a process of its own: train or resume it, and evaluate it."""

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
    """Train and measure; what is done already is not done again.

    Two processes may be sent to one run, when a study was killed and its runs were not: the second waits for the first.

    Args:
        recipe: in full, as plain values.
        folder: of the run.
        measure: what to measure after the training.
        threads: of torch: results repeat to the last bit for the same number only.
        allowed: import paths, where the process did not inherit what its starter allowed.
    """
    import torch

    from metamixer.config.recipe import Recipe
    from metamixer.core import trusted_imports
    from metamixer.runs.run import train
    from metamixer.training.started import is_first_process

    trusted_imports.allow(*allowed)
    torch.set_num_threads(threads)
    if not is_first_process():  # one of train.devices=N: the first holds the lock, and measures
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
