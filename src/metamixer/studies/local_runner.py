"""Run a study's runs in parallel, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metamixer.core import machine
from metamixer.studies.study_file import Cell, Measure

_FIRST_GUESS = 2 * 1024**3  # bytes of memory that a run is taken to need before one has ended
_MARGIN = 1.3


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


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    signalled: bool = False


class Halted(Exception):
    """A signal came; every run has written a checkpoint and stopped."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command resumes it")
        self.signal = number


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
    waiting, running = list(cells), list[_Running]()
    with _signals() as received:
        try:
            while (waiting and not received) or running:
                if received:
                    _hand_on(running, received[0])
                elif len(running) < jobs and (cell := _next(waiting, folder)) is not None and _fits(running, memory):
                    waiting.remove(cell)
                    running.append(_start(cell, folder, measure, threads, nice))
                    begun(cell)
                    continue
                for each in list(running):
                    if (found := _look(each)) is not None:
                        running.remove(each)
                        if not received:
                            ended(found)
                        if found.bytes is not None:
                            memory = max(found.bytes, memory or 0)
                time.sleep(0.1)
        finally:  # nobody would look after them
            _hand_on(running, signal.SIGTERM)
            for each in running:
                each.process.wait()
        if received:
            raise Halted(received[0])


def _next(waiting: Sequence[Cell], folder: Path) -> Cell | None:
    """The first that no other process works on: to wait for it would take a place that another run can have."""
    for cell in waiting:
        lock = folder / "runs" / f"{cell.name}.lock"
        try:
            if lock.exists():
                FileLock(lock).acquire(blocking=False).lock.release()
        except Timeout:
            continue
        return cell
    return None


def _fits(running: Sequence[_Running], memory: int | None) -> bool:
    """Whether there is memory for one more. One always runs."""
    if not running:
        return True
    largest = _FIRST_GUESS if memory is None else memory
    growing = sum(max(0, largest - machine.resident_memory(each.process.pid)) for each in running)
    return machine.available_memory() - growing > _MARGIN * largest


def _start(cell: Cell, folder: Path, measure: Measure, threads: int, nice: int) -> _Running:
    log, job = folder / "logs" / f"{cell.name}.txt", folder / "logs" / f"{cell.name}.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "recipe": cell.recipe.as_dict(),
        "folder": str(folder / "runs" / cell.name),
        "measure": measure.model_dump(mode="json"),
        "threads": threads,
        "nice": nice,
    }
    job.write_text(json.dumps(content), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: S603  (our own module)
            # Without -P the folder that one is in would come before the standard library.
            [sys.executable, "-P", "-m", "metamixer.studies", str(job)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on once
        )
    return _Running(cell, process, log, time.perf_counter())


def _look(each: _Running) -> Ended | None:
    """How it ended, if it has."""
    largest: int | None = None
    if hasattr(os, "wait4"):
        pid, status, usage = os.wait4(each.process.pid, os.WNOHANG)
        if not pid:
            return None
        code = each.process.returncode = os.waitstatus_to_exitcode(status)
        largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    elif (code := each.process.poll()) is None:  # type: ignore[assignment]
        return None
    seconds = time.perf_counter() - each.began
    if code == 0:
        return Ended(each.cell, seconds, bytes=largest)
    lines = each.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    why = "\n".join(lines[-3:]) or "it printed nothing"
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Ended(each.cell, seconds, f"{how}: {why} (all of it in {each.log})", largest)


@contextmanager
def _signals() -> Iterator[list[int]]:
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hand_on(running: Sequence[_Running], number: int) -> None:
    """Once to each: a second signal would make it stop without a checkpoint."""
    for each in running:
        if not each.signalled:
            each.signalled = True
            each.process.send_signal(number)
