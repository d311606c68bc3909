"""The folder of the cache, and how processes that write there keep out of each other's way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from metamixer.core.text import clean
from metamixer.data.errors import DataError

INSTEAD = "accepted is a folder on a disk with room, or data.cache=off, which decodes files in each epoch"


def cache_folder(cache: str | Path) -> Path | None:
    """The folder for decoded images: none (``off``), one in the cache folder of the system (``auto``), or a given one.

    Raises:
        DataError: the path is a file.
    """
    if cache == "off":
        return None
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    folder = Path(base or Path.home() / ".cache") / "metamixer" / "images" if cache == "auto" else Path(cache)
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"data.cache={clean(folder)} is a file; a folder, auto or off is accepted")
    return folder


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a shard, or yield False. The system releases it when the process ends in any way."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            path.with_suffix(".lock").unlink()  # a process that waits for a deleted file retries with a new one
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what helps where the cache cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"data.cache: {clean(path)} cannot be written: {error.strerror or error}; {INSTEAD}") from error
