"""Limit the memory of decoding threads: a few small files may decode to gigabytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Lets threads in while what they hold together stays within a limit. One alone always gets in.

    A fixed number of threads is the plainer way, and either slow for small images or too many for large ones.

    Args:
        limit: of all together, in any unit.

    >>> room = Room(10)
    >>> with room.taken(8), room.taken(2):
    ...     room.held
    10
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._reset()
        # A process is copied with its locks as they are, but without the threads that would release them.
        if hasattr(os, "register_at_fork"):  # Windows copies no processes
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.held = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait until there is room for ``size`` and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self.held or self.held + size <= self.limit)
            self.held += size
        try:
            yield
        finally:
            with self._changed:
                self.held -= size
                self._changed.notify_all()
