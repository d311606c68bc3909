"""Jobs forked from one process that has everything imported, so that each costs its work and little else."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

LOST = "its end was not seen, because the process that had started it was killed"


class Forks:
    """A server that imports what jobs of a package need, and forks for each of them.

    Args:
        package: whose ``__main__`` does a job.
        threads: of each job; the libraries that a job inherits were loaded for so many.
        forked: whether jobs are forked. Elsewhere than on Linux the system's own libraries do not survive a fork.
    """

    def __init__(self, package: str, threads: int, *, forked: bool = sys.platform == "linux") -> None:
        self.package, self.threads = package, threads
        self._server: subprocess.Popen[bytes] | None = None
        self._jobs: list[Forked] = []
        self.lost = not forked
        """Whether there is no server, or not any more."""

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.communicate()

    def start(self, job: Path, log: Path) -> Forked | None:
        """Begin a job, at the latest when all is imported; None if it cannot be."""
        if self._server is None and not self.lost:
            self._server = subprocess.Popen(  # noqa: S603  (our own module)
                [sys.executable, "-P", "-m", "metamixer.studies.fork_server", self.package],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what it cannot import, the job itself cannot, which has a log
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                start_new_session=True,
            )
        begun = Forked(self, len(self._jobs))
        self._jobs.append(begun)
        self.ask({"id": begun.number, "job": str(job), "log": str(log)})
        return None if self.lost else begun

    def ask(self, request: Mapping[str, object]) -> None:
        """Send a request."""
        if self._server is not None and self._server.stdin is not None:
            try:
                self._server.stdin.write(json.dumps(request).encode() + b"\n")
            except BrokenPipeError:
                self.lost = True

    def hear(self, seconds: float | None) -> None:
        """Take in what the server reports, and wait for the first of it for so long; None: for ever."""
        if self._server is None or (out := self._server.stdout) is None:
            return
        while not self.lost and select.select([out], [], [], seconds)[0]:
            if not (line := out.readline()):
                self.lost = True
                return
            found = json.loads(line)
            job, seconds = self._jobs[found["id"]], 0
            if "pid" in found:
                job.pid = found["pid"]
            else:
                job.returncode, job.largest = found["code"], found["largest"]


@dataclass
class Forked:
    """A job that was begun: as much of ``subprocess.Popen`` as is needed.

    Args:
        forks: whose it is.
        number: there.
        pid: of its process; 0: not known yet.
        returncode: as Popen's.
        largest: its largest memory in bytes.
    """

    forks: Forks
    number: int
    pid: int = 0
    returncode: int | None = None
    largest: int | None = None

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        self.forks.hear(0)
        if self.returncode is None and self.forks.lost and not (self.pid and _lives(self.pid)):
            raise ProcessLookupError(LOST)
        return self.returncode

    def wait(self) -> None:
        """Wait for its end."""
        while self.returncode is None and not self.forks.lost:
            self.forks.hear(None)

    def send_signal(self, number: int) -> None:
        """Send a signal to it, if it has not ended."""
        if not self.forks.lost:
            self.forks.ask({"id": self.number, "signal": number})
        elif self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
