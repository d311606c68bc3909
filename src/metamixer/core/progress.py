"""Report the progress of long loops to a watcher set by the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import length_hint
from typing import TypeVar

T = TypeVar("T")
Watcher = Callable[[str, int, int], None]
"""(name of the loop, items done, total number of items)"""

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Call ``watcher`` for all loops inside the block, from the thread that runs them."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def watched(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and report each one after it was used; ``total`` None: take the length of ``items``.

    >>> seen = []
    >>> with watched_by(lambda what, done, total: seen.append((what, done, total))):
    ...     list(watched("ab", "reading", 2))
    ['a', 'b']
    >>> seen
    [('reading', 0, 2), ('reading', 1, 2), ('reading', 2, 2)]
    """
    total = length_hint(items) if total is None else total
    watcher = _watcher.get() if total else None
    if watcher is not None:
        watcher(what, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        if watcher is not None:
            watcher(what, done, total)
