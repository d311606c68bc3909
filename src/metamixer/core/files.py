"""Text files written atomically, and JSON files read leniently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where the file is missing, damaged, or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
