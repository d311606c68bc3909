"""Lines and tables in the terminal; untrusted text is escaped. Rich is imported on first use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from metamixer.core.text import clean

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table


BETWEEN_LINES = 30.0
"""Seconds between two lines of a log."""


def console(*, stderr: bool = False) -> Console:
    """A console for the current stdout or stderr. In files and pipes lines are not wrapped to the terminal width."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=200)
    return made


def say(text: str, *, style: str = "", stderr: bool = False, console_: Console | None = None) -> None:
    """Print text with control characters escaped and without markup."""
    from rich.text import Text

    target = console_ or console(stderr=stderr)
    for line in text.split("\n"):
        target.print(Text(clean(line), style=style), soft_wrap=True)


def table(columns: Iterable[str], *, numbers: bool = True) -> Table:
    """An empty table; all columns except the first contain numbers, unless ``numbers`` is False."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from metamixer.cli.number_table import NumberTable

    made = NumberTable(box=box.SIMPLE_HEAD) if numbers else Table(box=box.SIMPLE_HEAD)
    for position, name in enumerate(columns):
        made.add_column(Text(clean(name)), justify="right" if numbers and position else "left", no_wrap=numbers)
    return made


def titled(title: str, shown: Table) -> Group:
    """A table with a title, which may be wider than the table."""
    from rich.console import Group
    from rich.text import Text

    return Group(Text(clean(title), style="bold"), shown)
