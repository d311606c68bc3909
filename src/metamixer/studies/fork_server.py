"""``python -m metamixer.studies.fork_server PACKAGE``: imports all that a job of PACKAGE needs, and forks for each job.

A fork inherits imported modules but no threads, so this process only imports: it never computes, initialises a GPU or
imports code of the user. Requests are lines of JSON on standard input, and events are written to standard output. The
server ends at the end of its input; forked jobs continue.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

NEEDED = (
    "scipy.optimize",
    "tensorboardX",
    "metamixer.runs.run",
    "metamixer.runs.evaluate_run",
    "metamixer.runs.localize_run",
)
_HELD = {signal.SIGINT, signal.SIGTERM} | ({signal.SIGHUP} if hasattr(signal, "SIGHUP") else set())


def serve(package: str) -> Any:
    """Serve requests: ``{id, job, log}`` starts a job, ``{id, signal}`` sends a signal to it.

    Returns:
        The request, in a forked process; None in the server, at the end.
    """
    # Signals sent to all processes are meant for the jobs; a job that was just forked receives them after unblocking.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    for name in (package, *NEEDED):
        import_module(name)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    requests = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115  (unbuffered: select sees no buffer)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _report_ended(running)
        if 0 not in ready:
            continue
        if not (line := requests.readline()):
            return None
        request = json.loads(line)
        if "signal" in request:
            for pid in (pid for pid, number in running.items() if number == request["id"]):
                os.kill(pid, request["signal"])
        elif pid := os.fork():
            running[pid] = request["id"]
            _report(id=request["id"], pid=pid)
        else:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(ended)
            os.close(wake)
            return request


def _report_ended(running: dict[int, int]) -> None:
    while running:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if not pid:
            return
        _report(id=running.pop(pid), code=os.waitstatus_to_exitcode(status), largest=usage.ru_maxrss * 1024)


def _report(**what: int) -> None:
    with suppress(BrokenPipeError):  # the parent was killed; the server ends at the end of its input
        os.write(1, json.dumps(what).encode() + b"\n")


def _run_job(package: str, job: str, log: str) -> None:
    """Run a job in this process like ``python -m PACKAGE JOB``."""
    os.setsid()
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
        opened = os.open(path, mode, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    os.dup2(1, 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    sys.argv = [package, job]
    runpy.run_module(package, run_name="__main__", alter_sys=True)


if __name__ == "__main__" and (request := serve(sys.argv[1])) is not None:
    _run_job(sys.argv[1], request["job"], request["log"])
