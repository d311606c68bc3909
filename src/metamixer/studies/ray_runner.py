"""Run a study as tasks of Ray (an extra), on one machine or a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from metamixer.config.yaml_file import RecipeError
from metamixer.core.trusted_imports import named_in
from metamixer.studies.local_runner import Ended
from metamixer.studies.run_worker import follow_cell
from metamixer.studies.study_file import Cell, Measure


def run_on_ray(
    cells: Sequence[Cell],
    folder: Path,
    measure: Measure,
    *,
    threads: int,
    address: str | None,
    ended: Callable[[Ended], None],
) -> None:
    """Run all cells, each as a task with ``threads`` CPUs; Ray decides how many run in parallel.

    All machines of the cluster must have access to the folder and the data under the same paths. A task whose machine
    fails is restarted up to three times, and resumes from its last checkpoint.

    Raises:
        RecipeError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise RecipeError("engine ray needs an extra: pip install 'metamixer[ray]'") from None
    folder = folder.resolve()
    begun = not ray.is_initialized()
    if begun:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=threads, max_retries=3)(follow_cell)
        began = time.perf_counter()
        jobs = {
            # Imports were allowed when the recipe was read here; processes of a cluster do not inherit that.
            task.remote(
                recipe := cell.recipe.as_dict(), folder / "runs" / cell.name, measure, threads, named_in(recipe)
            ): cell
            for cell in cells
        }
        while jobs:
            (done, *_), _ = ray.wait(list(jobs), num_returns=1)
            cell, fault = jobs.pop(done), None
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                fault = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            ended(Ended(cell, time.perf_counter() - began, fault))
    finally:
        if begun:
            ray.shutdown()
