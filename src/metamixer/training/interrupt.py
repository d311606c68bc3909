"""Stop on signals: training ends after the current step, with a checkpoint of that step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType


class Interrupted(Exception):
    """A signal asked to stop; a checkpoint of the last step was written."""

    def __init__(self, number: int, step: int, path: Path | None) -> None:
        self.signal = signal.Signals(number)
        self.step = step
        self.checkpoint = path
        super().__init__(f"stopped by {self.signal.name} after step {step}")


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Signals from the keyboard, from process managers, from a closed terminal (such as a lost ssh session), and from
clusters that announce the end of the time of a job."""


class Watch:
    """Inside the context, the first of :data:`SIGNALS` is stored in ``received``, and a second SIGINT stops at once.

    A second SIGTERM does not: it is often sent to each process of a group and to their launcher, which forwards it, and
    would interrupt writing the checkpoint that the first one requested.

    Only the main thread can handle signals; in other threads ``received`` remains 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Watch:
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup: training continues without the terminal
                self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def without_terminal(self) -> Iterator[None]:
        """Ignore errors of writing to a terminal that is closed after SIGHUP, so that the checkpoint is written."""
        try:
            yield
        except OSError:
            if not self.received or signal.Signals(self.received).name != "SIGHUP":
                raise

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
