"""Limit the memory of decoding threads: a few small files can decode to gigabytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """A budget that threads reserve parts of. A thread waits until its part fits; a single one never waits.

    A fixed number of threads would be simpler, but too small for small images or too large for large ones.

    Args:
        limit: the size of the budget, in any unit.

    >>> room = Room(10)
    >>> with room.taken(8), room.taken(2):
    ...     room.held
    10
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._reset()
        # A forked process gets a copy of the locks, but not the threads that would release them.
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.held = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait until ``size`` fits in the budget, and reserve it inside the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self.held or self.held + size <= self.limit)
            self.held += size
        try:
            yield
        finally:
            with self._changed:
                self.held -= size
                self._changed.notify_all()
