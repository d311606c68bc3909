"""One process at a time in a place that several may be sent to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(lock: Path, *, wait: bool) -> Iterator[None]:
    """Hold a file's lock inside of the block. It is given back when the process ends, however it ends.

    Args:
        lock: the file; made if it is not there, and left.
        wait: until another process has given it back.

    Raises:
        BlockingIOError: without ``wait``, another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing waits, and nobody should start a study twice
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
