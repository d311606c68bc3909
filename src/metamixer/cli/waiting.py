"""Show the progress of loops: nothing for two seconds, then a live line, or lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from metamixer.cli.console import BETWEEN_LINES, console

_PATIENCE = 2.0


class Waiting:
    """Shows loops that take more than two seconds, on stderr: a watcher for :mod:`metamixer.core.progress`.

    Args:
        clock: returns seconds.
        target: the console; None: the current stderr.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, target: Console | None = None) -> None:
        self._clock, self._target = clock, target
        self._live: Live | None = None
        self._began = self._said = 0.0
        self._at = ("", 0)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report ``done`` of ``total``; a new loop begins with 0, with fewer than before, or under another name."""
        now = self._clock()
        if not done or what != self._at[0] or done < self._at[1]:
            self._began, self._said = now, now + _PATIENCE - BETWEEN_LINES
        self._at = what, done
        if done >= total:
            self.close()
        elif now - self._said >= BETWEEN_LINES or self._live is not None:
            self._show(what, done, total, now)

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, what: str, done: int, total: int, now: float) -> None:
        left = (now - self._began) * (total - done) / max(done, 1)
        text = Text(f"{what}: {done:,} of {total:,}, about {left:,.0f} s left", style="dim")
        target = self._target or console(stderr=True)
        if not target.is_terminal:
            target.print(text)
        elif self._live is None:
            self._live = Live(text, console=target, refresh_per_second=4, transient=True)
            self._live.start()
        else:
            self._live.update(text)
        self._said = now
