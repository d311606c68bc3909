"""Text files written atomically, and JSON files read leniently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str, *, newline: str | None = None, errors: str = "strict") -> None:
    """Write a text file (UTF-8) atomically: to a temporary file beside it, which is then renamed.

    Args:
        path: in an existing folder. An existing file is replaced.
        text: the content.
        newline, errors: as in ``open``.
    """
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8", newline=newline, errors=errors)
    partial.replace(path)


def read_mapping(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing, damaged, or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
