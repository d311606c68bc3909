"""Conduct a study, from its file to its table."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from metamixer.config.yaml_file import RecipeError, is_by_hand
from metamixer.core.files import write_whole
from metamixer.runs.before_data import check_before_data
from metamixer.runs.run import check_outside_of_data
from metamixer.studies.estimate import Left
from metamixer.studies.local_runner import Ended, run_all
from metamixer.studies.plan import Jobs, Plan
from metamixer.studies.ray_runner import run_on_ray
from metamixer.studies.run_folder import finished
from metamixer.studies.slurm_runner import run_on_slurm
from metamixer.studies.study_file import Cell, Study
from metamixer.studies.table import Table
from metamixer.studies.table_notes import crossed, machines, missing, unequal

Engine = Literal["local", "ray", "slurm", "processes"]
"""Where runs are executed; ``processes`` is the former name of ``local``."""


def conduct(
    study: Study,
    folder: Path,
    *,
    jobs: Jobs = 1,
    threads: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
    slurm: Mapping[str, Any] | None = None,
    nice: int = 0,
    results: Sequence[Path] = (),
    table_only: bool = False,
    ended: Callable[[Ended], None] = lambda _: None,
    remains: Callable[[Left], None] = lambda _: None,
) -> Table:
    """Run the missing runs of a study, and write its table.

    Runs with a line in ``results.jsonl``, in the folder or beside the study file, are finished; their folders are not
    needed. The folder may contain finished or started runs of an earlier call; these are resumed. Runs that fail are
    listed in the notes of the table, and are retried by the next call.

    Args:
        study: the study.
        folder: folder for ``results.jsonl``, ``runs/``, ``logs/`` and the table: ``results.md``, ``results.tex``,
            ``results.csv``, ``results.json``.
        jobs: number of parallel runs, fewer while memory is short. ``auto``: as many as there are cores for.
        threads: number of threads per run. None: that of the finished runs of the study, or else the cores divided by
            ``jobs`` (1 for ``auto``). Results are only identical with the same number.
        engine: ``local``: processes on this machine. ``ray``, ``slurm``: a cluster with access to the folder and the
            data under the same paths, which decides how many runs there are in parallel.
        address: address of a Ray cluster; None: this machine.
        slurm: options of the jobs, see :func:`metamixer.studies.slurm_runner.run_on_slurm`.
        nice: increment of the niceness of runs, to give other processes priority.
        results: more files of lines, such as from other machines; their lines of this study are copied.
        table_only: start no runs.
        ended: called when a run ends, and at the start for every run that had already ended.
        remains: called with the remaining work before the first run starts, and after each run, before ``ended``.

    Raises:
        RecipeError: the folder is inside the data folder, another call uses it, the number of threads would change, or
            a network of a run does not exist.
        Halted: a signal was received.
    """
    if nice and (engine == "ray" or not hasattr(os, "nice")):
        raise RecipeError(f"nice={nice}: accepted for engine=local and slurm, and on systems that have niceness")
    if slurm and engine != "slurm":
        raise RecipeError(f"options of SLURM ({', '.join(slurm)}) with engine={engine}: accepted with engine=slurm")
    for cell in study.runs:
        check_outside_of_data(cell.recipe.data, folder)
        if engine == "ray" and cell.recipe.train.devices > 1:
            raise RecipeError(f"train.devices={cell.recipe.train.devices}: accepted with engine=ray is 1")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        plan = Plan.of(study, folder, jobs=jobs, threads=threads, results=results)
        own = folder / "study.yaml"
        if not is_by_hand(own):  # it may be the given file itself, or a larger study that includes this one
            write_whole(own, study.as_yaml())
        plan.keep_news()
        faults: dict[Cell, str] = {}
        begun: dict[str, float] = {}

        def began(cell: Cell) -> None:
            begun[cell.digest] = time.perf_counter()

        def note(run: Ended) -> None:
            begun.pop(run.cell.digest, None)
            if run.fault is None and not finished(plan.run_folder(run.cell), study.content.measure):
                run = replace(run, fault=f"{plan.run_folder(run.cell)} has no results here")
            if run.fault is None:
                plan.take_in(run.cell, run.seconds, run.bytes)
            else:
                faults[run.cell] = run.fault
            _write_table(plan, faults)
            now = time.perf_counter()
            elapsed = {digest: now - start for digest, start in begun.items()}
            remains(plan.left(elapsed, [cell.digest for cell in faults]))
            ended(run)

        _write_table(plan, faults)
        for cell in plan.done:
            ended(Ended(cell, 0.0))
        remains(plan.left({}))
        if (waiting := plan.waiting) and not table_only:
            for cell in waiting if engine != "ray" else ():
                check_before_data(cell.recipe)
            write_whole(folder / "threads", f"{plan.threads}\n")
            measure = study.content.measure
            if engine == "ray":
                run_on_ray(waiting, folder, measure, threads=plan.threads, address=address, ended=note)
            elif engine == "slurm":
                run_on_slurm(waiting, folder, measure, threads=plan.threads, nice=nice, options=slurm or {}, ended=note)
            else:
                known = max((line.memory or 0 for line in plan.lines.values()), default=0)
                run_all(
                    waiting,
                    folder,
                    measure,
                    jobs=plan.jobs,
                    threads=plan.threads,
                    nice=nice,
                    memory=known or None,
                    begun=began,
                    ended=note,
                )
        return _write_table(plan, faults)


def table_of(study: Study, folder: Path) -> Table:
    """The table of the finished runs; nothing is run or written."""
    return _table(Plan.of(study, folder), {})


def _table(plan: Plan, faults: Mapping[Cell, str]) -> Table:
    done = {cell: line for cell in plan.study.cells if (line := plan.line(cell)) is not None}
    notes = [*unequal(plan.study), *machines(done.values()), *crossed(plan.study, done)]
    notes += missing(plan.study, done, faults)
    return Table.of(plan.study, {cell: line.metrics for cell, line in done.items()}, notes)


def _write_table(plan: Plan, faults: Mapping[Cell, str]) -> Table:
    table, folder = _table(plan, faults), plan.folder
    write_whole(folder / "results.md", table.as_markdown())
    write_whole(folder / "results.tex", table.as_latex())
    write_whole(folder / "results.csv", table.as_csv())
    write_whole(folder / "results.json", json.dumps(table.as_dict(), indent=1))
    return table


def _alone(folder: Path) -> AbstractContextManager[object]:
    """Hold the lock of the study; the system releases it when the process ends in any way."""
    try:
        return FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout:
        raise RecipeError(f"{folder}: another process works on this study") from None
