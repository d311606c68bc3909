"""Draw tables of a report in the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from metamixer.cli.console import table, titled
from metamixer.core.text import clean
from metamixer.report.tables import NOTHING, Cell, Table

_STYLES = {"good": "green", "bad": "red"}


def drawn(made: Table) -> Group:
    """A table with its caption and note."""
    shown = table(made.columns, numbers=not made.words)
    for place, row in enumerate(made.rows):
        shown.add_row(*map(_text, row), style="bold" if place in made.strong else "")
    return Group(titled(made.caption, shown), *([Text(clean(made.note), style="dim")] if made.note else []))


def _text(cell: Cell) -> Text:
    return Text("" if cell.text == NOTHING else clean(cell.text), style=_STYLES.get(cell.tone, ""))
