"""Runs of a study side by side, each in a process of its own: one that dies takes no other with it."""

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
    told: bool = False  # of the signal


class Halted(Exception):
    """A signal came; every run has written a checkpoint and stopped."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command goes on")
        self.signal = number


def run_all(
    cells: Sequence[Cell],
    folder: Path,
    measure: Measure,
    *,
    jobs: int,
    threads: int,
    ended: Callable[[Ended], None],
) -> list[Ended]:
    """Run them, at most ``jobs`` at a time, and fewer while memory is short.

    Memory: a further run is started only while the system has 1.3 times as much available as the largest run of this
    study has taken (2 GiB before one has ended).

    Args:
        cells: the runs.
        folder: of the study; runs are in ``runs/NAME``, what they print in ``logs/NAME.txt``.
        measure: after each training.
        jobs: processes.
        threads: of each.
        ended: is called when a run has ended.

    Raises:
        Halted: SIGINT or SIGTERM; they were handed on, and the runs were waited for.
    """
    waiting, results = list(cells), list[Ended]()
    running: list[_Running] = []
    largest = _FIRST_GUESS
    known = False
    with _signals() as received:
        try:
            while (waiting and not received) or running:
                if received:
                    _hand_on(running, received[0])
                elif waiting and len(running) < jobs and (not running or _available() > _MARGIN * largest):
                    running.append(_start(waiting.pop(0), folder, measure, threads))
                    continue
                for each in list(running):
                    if (found := _look(each)) is not None:
                        running.remove(each)
                        if not received:
                            results.append(found)
                            ended(found)
                        if found.bytes is not None:
                            largest, known = max(found.bytes, largest if known else 0), True
                time.sleep(0.05)
        finally:  # nobody would look after them
            _hand_on(running, signal.SIGTERM)
            for each in running:
                each.process.wait()
        if received:
            raise Halted(received[0])
    return results


def _start(cell: Cell, folder: Path, measure: Measure, threads: int) -> _Running:
    log, job = folder / "logs" / f"{cell.name}.txt", folder / "logs" / f"{cell.name}.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "recipe": cell.recipe.as_dict(),
        "folder": str(folder / "runs" / cell.name),
        "measure": measure.model_dump(mode="json"),
        "threads": threads,
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


def _available() -> float:
    """Bytes of memory that the system can still give; infinite where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float("inf")


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
        if not each.told:
            each.told = True
            each.process.send_signal(number)
