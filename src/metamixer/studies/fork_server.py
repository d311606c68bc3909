"""``python -m metamixer.studies.fork_server PACKAGE``: imports all that a job of PACKAGE needs, and forks for each job.

A fork takes over what was imported, but no threads: this process only imports. It never computes, never looks for a
GPU and never imports code of the user's. Requests come as lines of JSON on standard input, what happened goes to
standard output; when the input ends, so does the server, and what it has forked lives on.
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
    "torch._dynamo",  # torch's optimizers import it at their first step: 4 s of processor time
    "scipy.optimize",
    "tensorboardX",
    "metamixer.runs.run",
    "metamixer.runs.evaluate_run",
    "metamixer.runs.localize_run",
)
_HELD = {signal.SIGINT, signal.SIGTERM} | ({signal.SIGHUP} if hasattr(signal, "SIGHUP") else set())


def serve(package: str) -> Any:
    """Answer requests: ``{id, job, log}`` begins a job, ``{id, signal}`` sends a signal to it.

    Returns:
        In a forked process its request; in the server None, at the end.
    """
    # They are for the jobs, whoever sends them to all processes at once; a job that was just forked gets them late.
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
    with suppress(BrokenPipeError):  # who started the jobs was killed; the end of the input says so too
        os.write(1, json.dumps(what).encode() + b"\n")


def _become(package: str, job: str, log: str) -> None:
    """Do the job as ``python -m PACKAGE JOB`` would."""
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
    _become(sys.argv[1], request["job"], request["log"])
