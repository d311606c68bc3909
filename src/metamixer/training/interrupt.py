"""Stop on signals: training ends after the running step, with a checkpoint of that step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType


class Interrupted(Exception):
    """A signal asked to stop; the checkpoint of this very step is written."""

    def __init__(self, number: int, step: int, path: Path | None) -> None:
        self.signal = signal.Signals(number)
        self.step = step
        self.checkpoint = path
        super().__init__(f"stopped by {self.signal.name} after step {step}")


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""From the keyboard, from whoever ends processes, from a terminal that is closed (a lost ssh session), and from
clusters that announce the end of a job's time."""


class Watch:
    """While entered, the first of :data:`SIGNALS` is noted in ``number``, and another SIGINT stops at once.

    Another SIGTERM does not: who ends a group of processes often sends it to each of them and to their launcher, which
    sends it on, and the second one would end the writing of the checkpoint that the first one asked for.

    Only a program's main thread may handle signals: elsewhere nothing is watched and ``number`` stays 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Watch:
        self.number = 0
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup: training outlives the terminal
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
        """After SIGHUP the terminal is gone: what cannot be written to it does not stop the checkpoint."""
        try:
            yield
        except OSError:
            if not self.number or signal.Signals(self.number).name != "SIGHUP":
                raise

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
