"""Text files that are there whole or not at all, and text that stays text wherever it is shown or opened."""

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


def clean(text: object) -> str:
    r"""Text on one line, with control characters and invisible ones shown as escapes.

    A file may be called ``x.jpg\nerror: nothing was lost``, or hold sequences that paint over what stands above.

    >>> clean("a cat\x1b[31m\n")
    'a cat\\x1b[31m\\n'
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in str(text)
    )


def spreadsheet_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula.

    >>> spreadsheet_cell("=cmd()"), spreadsheet_cell("cat")
    ("'=cmd()", 'cat')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
