"""A study from its file to its table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from metamixer.config.yaml_file import RecipeError
from metamixer.core.files import write_whole
from metamixer.studies.columns import read_figures
from metamixer.studies.local_runner import Ended, run_all
from metamixer.studies.ray_runner import run_on_ray
from metamixer.studies.run_worker import finished
from metamixer.studies.study_file import Study
from metamixer.studies.table import Table
from metamixer.studies.table_notes import machines, missing, unequal

Engine = Literal["processes", "ray"]


def conduct(
    study: Study,
    folder: Path,
    *,
    jobs: int = 1,
    threads: int | None = None,
    engine: Engine = "processes",
    address: str | None = None,
    ended: Callable[[Ended], None] = lambda _: None,
) -> Table:
    """Run what is missing of a study, and write its table.

    The folder may hold runs of an earlier call, whole or begun: it goes on with them. A run that fails is told in the
    table's notes, and is tried again by the next call.

    Args:
        study: what to do.
        folder: for ``runs/``, ``logs/`` and the table: ``results.md``, ``results.tex``, ``results.csv``,
            ``results.json``.
        jobs: runs side by side; fewer while memory is short.
        threads: of each run. None: what the folder's runs had, else the processors divided by ``jobs``. The same number
            gives the same bits.
        engine: ``processes`` on this machine, or ``ray``: a cluster that has this folder under the same path.
        address: of a Ray cluster; None: one on this machine.
        ended: is called when a run ends.

    Raises:
        RecipeError: another call works in the folder, or the threads would change in the middle of it.
        Halted: a signal came.
    """
    if jobs < 1 or (threads is not None and threads < 1):
        raise RecipeError(f"jobs={jobs}, threads={threads}: 1 or more would work")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        threads = _threads(folder, jobs, threads)
        write_whole(folder / "study.yaml", study.as_yaml())
        faults: dict[str, str] = {}

        def note(run: Ended) -> None:
            if run.fault is not None:
                faults[f"{run.cell.label}, seed {run.cell.seed}"] = run.fault
            _write_table(study, folder, faults)
            ended(run)

        measure = study.content.measure
        _write_table(study, folder, faults)
        waiting = []
        for cell in study.cells:
            if finished(folder / "runs" / cell.name, measure):
                ended(Ended(cell, 0.0))
            else:
                waiting.append(cell)
        if engine == "ray":
            run_on_ray(waiting, folder, measure, threads=threads, address=address, ended=note)
        else:
            run_all(waiting, folder, measure, jobs=jobs, threads=threads, ended=note)
        return _write_table(study, folder, faults)


def table_of(study: Study, folder: Path, faults: Mapping[str, str] | None = None) -> Table:
    """The table of the runs that have ended so far."""
    done = {
        cell: read_figures(folder / "runs" / cell.name)
        for cell in study.cells
        if finished(folder / "runs" / cell.name, study.content.measure)
    }
    notes = [
        *unequal(study),
        *machines(folder / "runs" / cell.name for cell in done),
        *missing(study, done, faults or {}),
    ]
    return Table.of(study, done, notes)


def _write_table(study: Study, folder: Path, faults: Mapping[str, str]) -> Table:
    table = table_of(study, folder, faults)
    write_whole(folder / "results.md", table.as_markdown())
    write_whole(folder / "results.tex", table.as_latex())
    write_whole(folder / "results.csv", table.as_csv())
    write_whole(folder / "results.json", json.dumps(table.as_dict(), indent=1))
    return table


def _threads(folder: Path, jobs: int, asked: int | None) -> int:
    known = folder / "threads"
    if known.is_file():
        before = int(known.read_text())
        if asked not in (None, before):
            raise RecipeError(
                f"{folder} was begun with {before} threads for each run, not {asked}: runs of other numbers of threads "
                "differ in their last bits; another --out would work"
            )
        return before
    threads = max(1, (os.cpu_count() or 1) // jobs) if asked is None else asked
    write_whole(known, f"{threads}\n")
    return threads


def _alone(folder: Path) -> AbstractContextManager[object]:
    """Hold the study's lock; it is given back when the process ends, however it ends."""
    try:
        return FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout:
        raise RecipeError(f"{folder}: another process works on this study") from None
