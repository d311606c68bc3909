"""Children that run the command line and may die: forked from a server that has torch loaded, in groups of their own.

To import torch takes longer than all that these children do, so a process imports it once and forks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path.cwd()


@dataclass
class Child:
    """One run of ``metamixer`` in a process group of its own; its output goes to ``log``."""

    server: subprocess.Popen
    pid: int
    log: Path
    started: float = field(default_factory=time.monotonic)

    def wait(self) -> int:
        """The exit code, negative for a signal. Workers that are left die with their group."""
        code = json.loads(self.server.stdout.readline())
        self.signal(signal.SIGKILL)
        return code

    def signal(self, number: int, group: bool = True) -> None:
        """To the whole group, or to the process alone."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Server:
    """Starts children. One at a time."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.count = logs, 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from tests.faults.children import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
        )  # fmt: skip
        assert json.loads(self.process.stdout.readline()) == "ready"

    def start(self, *words: object, **more: object) -> Child:
        """``metamixer WORDS``.

        Args:
            words: of the command line.
            more: ``die=("package.module:Class.name", n)``: the child kills its group at the n-th call (from 0) of that
                function, before the call, or with ``after=True`` after it; ``signal=NUMBER`` sends another signal,
                and to the process alone; ``writing=True``: only calls that open a file to be written count.
                ``streamed=True``: images stay on disk. ``limit=BYTES``: no file may become longer.
        """
        log = self.logs / f"{self.count:04d}.log"
        self.count += 1
        order = {"words": [str(word) for word in words], "log": str(log), **more}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Child(self.process, json.loads(self.process.stdout.readline()), log)

    def run(self, *words: object, **more: object) -> tuple[int, str]:
        """Exit code and output of a child that is left alone."""
        child = self.start(*words, **more)
        return child.wait(), child.text()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def serve() -> None:
    """The server: reads orders, answers with the child's number and then with its exit code."""
    import torch

    import metamixer.cli.app
    import metamixer.cli.train_recipe  # noqa: F401
    from tests import toys  # noqa: F401  # what a training imports

    torch.set_num_threads(1)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            os.setsid()
            code = 70
            try:
                code = _obey(order)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(json.dumps(pid), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


def _obey(order: dict) -> int:
    output = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    empty = os.open(os.devnull, os.O_RDONLY)
    for number, place in enumerate((empty, output, output)):
        os.dup2(place, number)
    if order.get("streamed"):
        from metamixer.data.files.load_files import Reading

        _as_if_large(Reading)
    if limit := order.get("limit"):
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if die := order.get("die"):
        _deadly(*die, order.get("signal", signal.SIGKILL), order.get("after", False), order.get("writing", False))
    from metamixer.cli.app import main

    sys.argv = ["metamixer", *order["words"]]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _as_if_large(reading: type) -> None:
    """No image set fits into memory, so all of them are read from disk again and again."""
    check = reading.__post_init__

    def small(self: object) -> None:
        check(self)
        object.__setattr__(self, "cache_limit_bytes", 0)

    reading.__post_init__ = small


def _deadly(name: str, left: int, number: int, after: bool, writing: bool) -> None:
    """Replace a function by one that does the same, and sends a signal at its n-th call."""
    from importlib import import_module

    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    place = import_module(module)
    for owner in owners:
        place = getattr(place, owner)
    real = getattr(place, last)

    def call(*args: object, **kwargs: object) -> object:
        nonlocal left
        if writing and "w" not in str(args[1:2]):
            return real(*args, **kwargs)
        left -= 1
        due = left == -1
        result = real(*args, **kwargs) if after or not due or number != signal.SIGKILL else None
        if due and number == signal.SIGKILL:
            os.killpg(os.getpid(), number)
        elif due:
            os.kill(os.getpid(), number)
        return result

    setattr(place, last, call)
