"""Text files written atomically."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, text: str, *, newline: str | None = None, errors: str = "strict") -> None:
    """Write a text file (UTF-8) beside its place and move it there: nobody ever reads half of it.

    Args:
        path: in a folder that is there. A file of that name is replaced.
        text: its content.
        newline, errors: as of ``open``.
    """
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8", newline=newline, errors=errors)
    partial.replace(path)
