"""Jobs forked from a process that has imported everything, which saves the time of imports."""

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
    """A server that imports the modules that jobs of a package need, and forks for each job.

    Args:
        package: the package whose ``__main__`` does a job.
        threads: number of threads per job; libraries are loaded with this number before the fork.
        forked: whether to fork. Outside of Linux, system libraries do not support forks.
    """

    def __init__(self, package: str, threads: int, *, forked: bool = sys.platform == "linux") -> None:
        self.package, self.threads = package, threads
        self._server: subprocess.Popen[bytes] | None = None
        self._jobs: list[Forked] = []
        self.lost = not forked
        """Whether there is no server, or it has ended."""

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.communicate()

    def start(self, job: Path, log: Path) -> Forked | None:
        """Request a job, which starts when all imports are done; None if there is no server."""
        if self._server is None and not self.lost:
            self._server = subprocess.Popen(  # noqa: S603  (our own module)
                [sys.executable, "-P", "-m", "metamixer.studies.fork_server", self.package],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # import errors are repeated in the log of a job
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
        """Process the events of the server, waiting up to ``seconds`` for the first one; None: without limit."""
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
    """A forked job, with the part of the interface of ``subprocess.Popen`` that is used.

    Args:
        forks: the server.
        number: id of the job in the server.
        pid: process id; 0: not known yet.
        returncode: as in ``Popen``.
        largest: peak memory in bytes.
    """

    forks: Forks
    number: int
    pid: int = 0
    returncode: int | None = None
    largest: int | None = None

    def poll(self) -> int | None:
        """The exit code, if the job has ended."""
        self.forks.hear(0)
        if self.returncode is None and self.forks.lost and not (self.pid and _lives(self.pid)):
            raise ProcessLookupError(LOST)
        return self.returncode

    def wait(self) -> None:
        """Wait for the end of the job."""
        while self.returncode is None and not self.forks.lost:
            self.forks.hear(None)

    def send_signal(self, number: int) -> None:
        """Send a signal to the job, if it has not ended."""
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
