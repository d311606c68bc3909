"""Escaping and formatting of text for terminals, spreadsheets and messages."""

from __future__ import annotations

from collections.abc import Iterable


def clean(text: object) -> str:
    r"""Text on one line, with control characters and invisible characters as escape sequences.

    A file name may be ``x.jpg\nerror: nothing was lost``, or contain sequences that overwrite earlier terminal output.

    >>> clean("a cat\x1b[31m\n")
    'a cat\\x1b[31m\\n'
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in str(text)
    )


def spreadsheet_cell(text: str) -> str:
    """Text that no spreadsheet interprets as a formula.

    >>> spreadsheet_cell("=cmd()"), spreadsheet_cell("cat")
    ("'=cmd()", 'cat')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def duration(seconds: float) -> str:
    """A duration such as ``3 h 20 min``.

    >>> duration(42), duration(200), duration(12_000)
    ('42 s', '3 min', '3 h 20 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def counted(count: int, thing: str) -> str:
    """A number with a noun, in the plural unless the number is 1.

    >>> counted(1, "epoch"), counted(2_000, "file")
    ('1 epoch', '2,000 files')
    """
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def percent(share: float, images: int = 0) -> str:
    """A share in percent, with a second digit from 10,000 images on.

    >>> percent(0.7161), percent(0.71614, images=10_000)
    ('71.6 %', '71.61 %')
    """
    return f"{100 * share:.{2 if images >= 10_000 else 1}f} %"


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names, and the number of those left out.

    >>> listed("abc", most=2)
    'a, b and 1 more'
    """
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def quoted(names: Iterable[str], most: int = 8) -> str:
    """:func:`listed` names in quotation marks, with control characters escaped."""
    return listed(map(repr, names), most)
