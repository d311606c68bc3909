"""Child processes of a study or a search: start, monitor, stop and measure them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamixer.core import machine
from metamixer.studies.forks import Forked, Forks

_FIRST_GUESS = 2 * 1024**3  # assumed memory of a process in bytes, until one has ended
_MARGIN = 1.3


class Halted(Exception):
    """A signal was received; all runs have written a checkpoint and stopped."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command resumes it")
        self.signal = number


@dataclass(frozen=True)
class Exit:
    """The end of a process.

    Args:
        seconds: seconds since its start.
        fault: why it failed, with the last lines of its log; None: success.
        bytes: peak memory, if the system reports it.
    """

    seconds: float
    fault: str | None
    bytes: int | None


@dataclass
class Child:
    """A child process."""

    process: subprocess.Popen[bytes] | Forked
    log: Path
    began: float
    signalled: bool = False

    @classmethod
    def start(cls, forks: Forks, job: Mapping[str, Any], log: Path) -> Child:
        """Start a job as ``python -m PACKAGE JOB.json`` does; its output is appended to ``log``."""
        log.parent.mkdir(parents=True, exist_ok=True)
        path = log.with_suffix(".json")
        path.write_text(json.dumps(job), encoding="utf-8")
        process: subprocess.Popen[bytes] | Forked | None = forks.start(path, log)
        if process is None:
            with log.open("ab") as out:
                process = subprocess.Popen(  # noqa: S603  (our own module)
                    # Without -P the current folder would come before the standard library.
                    [sys.executable, "-P", "-m", forks.package, str(path)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": str(forks.threads)},
                    start_new_session=True,  # Ctrl-C only reaches this process, which forwards it once
                )
        return cls(process, log, time.perf_counter())

    def look(self) -> Exit | None:
        """The exit of the process, or None while it runs."""
        try:
            code, largest = _ended(self.process)
        except ProcessLookupError as error:
            return self._failed(str(error), None)
        if code is None:
            return None
        if code == 0:
            return Exit(time.perf_counter() - self.began, None, largest)
        return self._failed(f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}", largest)

    def _failed(self, how: str, largest: int | None) -> Exit:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        why = "\n".join(lines[-3:]) or "it printed nothing"
        return Exit(time.perf_counter() - self.began, f"{how}: {why} (all of it in {self.log})", largest)


def _ended(process: subprocess.Popen[bytes] | Forked) -> tuple[int | None, int | None]:
    """The exit code of a process, if it has ended, and its peak memory in bytes, if known."""
    if isinstance(process, Forked):
        return process.poll(), process.largest
    if not hasattr(os, "wait4"):
        return process.poll(), None
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return None, None
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fits(running: Sequence[Child], memory: int | None) -> bool:
    """Whether there is memory for one more process, if the peak so far is ``memory`` bytes. One can always run."""
    if not running:
        return True
    largest = _FIRST_GUESS if memory is None else memory
    growing = sum(max(0, largest - machine.resident_memory(each.process.pid)) for each in running)
    return machine.available_memory() - growing > _MARGIN * largest


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect the numbers of SIGINT and SIGTERM, which have no other effect inside the block."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hand_on(running: Sequence[Child], number: int) -> None:
    """Send a signal once to each process; a second one would stop it without a checkpoint."""
    for each in running:
        if not each.signalled:
            each.signalled = True
            each.process.send_signal(number)


def stop(running: Sequence[Child]) -> None:
    """Stop all processes and wait for them."""
    hand_on(running, signal.SIGTERM)
    for each in running:
        each.process.wait()
