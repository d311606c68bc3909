"""Run the runs of a study in parallel, each in its own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from metamixer.studies.child_process import Child, Halted, fits, hand_on, signals, stop
from metamixer.studies.forks import Forks
from metamixer.studies.study_file import Cell, Measure


@dataclass(frozen=True)
class Ended:
    """The end of a run.

    Args:
        cell: the run.
        seconds: seconds since this process started it; 0 if it had ended before.
        fault: why it failed, with the last lines of its log; None: success.
        bytes: peak memory, if the system reports it.
    """

    cell: Cell
    seconds: float
    fault: str | None = None
    bytes: int | None = None


def run_all(
    cells: Sequence[Cell],
    folder: Path,
    measure: Measure,
    *,
    jobs: int,
    threads: int,
    nice: int = 0,
    memory: int | None = None,
    begun: Callable[[Cell], None] = lambda _: None,
    ended: Callable[[Ended], None],
) -> None:
    """Run all cells, at most ``jobs`` at a time, and fewer while memory is short.

    A run is only started if the available memory, minus what the current runs will still need, is at least 1.3 times
    the peak of the largest run of this study (2 GiB until one has ended). A run that another process works on, such as
    one left by a killed study, is postponed.

    Args:
        cells: the runs.
        folder: the study folder; runs are in ``runs/NAME``, their output in ``logs/NAME.txt``.
        measure: measurements after training.
        jobs: number of processes.
        threads: number of threads per run.
        nice: increment of the niceness of runs.
        memory: peak memory of the largest run so far in bytes; None: unknown.
        begun: called when a run has been started.
        ended: called when a run has ended.

    Raises:
        Halted: SIGINT or SIGTERM was received and forwarded, and all runs have ended.
    """
    waiting = list(cells)
    running: dict[Cell, Child] = {}
    with signals() as received, Forks("metamixer.studies", threads) as forks:
        try:
            while (waiting and not received) or running:
                children = list(running.values())
                if received:
                    hand_on(children, received[0])
                elif len(running) < jobs and (cell := _next(waiting, folder)) is not None and fits(children, memory):
                    waiting.remove(cell)
                    running[cell] = begin(cell, folder, measure, forks, nice)
                    begun(cell)
                    continue
                for cell, child in list(running.items()):
                    if (found := child.look()) is not None:
                        del running[cell]
                        if not received:
                            ended(Ended(cell, found.seconds, found.fault, found.bytes))
                        if found.bytes is not None:
                            memory = max(found.bytes, memory or 0)
                time.sleep(0.1)
        finally:
            stop(list(running.values()))
        if received:
            raise Halted(received[0])


def _next(waiting: Sequence[Cell], folder: Path) -> Cell | None:
    """The first run that no other process works on, so that no slot waits for a lock."""
    for cell in waiting:
        lock = folder / "runs" / f"{cell.name}.lock"
        try:
            if lock.exists():
                FileLock(lock).acquire(blocking=False).lock.release()
        except Timeout:
            continue
        return cell
    return None


def begin(cell: Cell, folder: Path, measure: Measure, forks: Forks, nice: int = 0) -> Child:
    """Start the process of a run; the arguments are those of :func:`run_all`."""
    job = {
        "recipe": cell.recipe.as_dict(),
        "folder": str(folder / "runs" / cell.name),
        "measure": measure.model_dump(mode="json"),
        "threads": forks.threads,
        "nice": nice,
    }
    return Child.start(forks, job, folder / "logs" / f"{cell.name}.txt")
