"""Run a study's runs in parallel, each in a process of its own."""

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
    """How a run went.

    Args:
        cell: which.
        seconds: in this study's process; 0 where it had ended before.
        fault: why it failed, the last lines of its log; None: it has ended well.
        bytes: its largest memory, where the system says so.
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
    """Run them, at most ``jobs`` at a time, and fewer while memory is short.

    Memory: a further run is started only while the system has 1.3 times as much available as the largest run of this
    study has taken (2 GiB before one has ended), beside what the others are still going to take. A run that another
    process works on, as when a study was killed and its runs were not, is put off; the ones after it start before it.

    Args:
        cells: the runs.
        folder: of the study; runs are in ``runs/NAME``, what they print in ``logs/NAME.txt``.
        measure: after each training.
        jobs: processes.
        threads: of each.
        nice: is added to the niceness of each.
        memory: in bytes, the largest of a run so far; None: not known.
        begun: is called when a run has been started.
        ended: is called when a run has ended.

    Raises:
        Halted: SIGINT or SIGTERM; they were handed on, and the runs were waited for.
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
    """The first run that no other process works on, so that no slot is blocked by waiting."""
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
