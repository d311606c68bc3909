"""Tables of a report as values: cells with a text to show and a value to sort by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from metamixer.core.text import percent
from metamixer.metrics.chance import may_be_chance

NOTHING = "–"


def known(value: float | None) -> TypeGuard[float]:
    """Whether a number was measured: neither None nor NaN."""
    return value is not None and value == value


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: the displayed text.
        value: the number, or None.
        tone: a style: ``good``, ``bad``, ``r0`` to ``r9`` (correct, from light to dark), ``w0`` to ``w9`` (wrong).
        bar: a share drawn as a bar behind the text.
        hint: tooltip.
    """

    text: str
    value: float | None = None
    tone: str = ""
    bar: float | None = None
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under columns. The first cell of a row is its title.

    Args:
        caption: explains the numbers.
        columns: column headings.
        rows: rows of cells.
        words: indices of columns with text instead of numbers, besides the first.
        strong: indices of emphasised rows.
        kind: ``plain``, or ``heat`` for matrices.
        note: a note below the table.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: frozenset[int] = frozenset()
    strong: frozenset[int] = frozenset()
    kind: str = "plain"
    note: str = ""


def measured(value: float | None) -> float | None:
    """The value, or None for NaN."""
    return value if known(value) else None


def share(value: float | None, images: int = 0, tone: str = "", bar: bool = False) -> Cell:
    """A cell with a share in percent."""
    if not known(value):
        return Cell(NOTHING)
    return Cell(percent(value, images), value, tone, min(1.0, max(0.0, value)) if bar else None)


def number(value: float | None) -> Cell:
    """A cell with a number with three decimals."""
    return Cell(f"{value:.3f}", value) if known(value) else Cell(NOTHING)


def gain(value: float | None, other: float | None, images: int = 0) -> Cell:
    """A cell with the difference of two shares in percentage points, coloured if it is statistically significant."""
    if not known(value) or not known(other):
        return Cell(NOTHING)
    points = 100 * (value - other)
    digits = 2 if images >= 10_000 else 1
    chance = images > 0 and may_be_chance(value, other, images)
    tone = "" if chance or not points else "good" if points > 0 else "bad"
    return Cell(f"{points:+.{digits}f}", value - other, tone)


def points(value: float | None, *, signed: bool = False) -> Cell:
    """A cell with a share in percentage points, used for calibration errors."""
    return Cell(f"{100 * value:{'+' if signed else ''}.1f}", value) if known(value) else Cell(NOTHING)


def matrix(
    caption: str, names: Sequence[str], values: Sequence[Sequence[float | None]], *, shares: bool, corner: str = ""
) -> Table:
    """A square matrix with the same names for rows and columns.

    >>> matrix("Agreement", ["a"], [[0.5]], shares=True).rows[0][1].text
    '50.0 %'
    """
    most = max((value for row in values for value in row if known(value)), default=0.0) or 1.0
    rows = []
    for name, row in zip(names, values, strict=False):
        cells = [share(value) if shares else number(value) for value in row]
        shown = [
            Cell(cell.text, cell.value, "" if cell.value is None else f"r{level(cell.value / most)}") for cell in cells
        ]
        rows.append((Cell(name), *shown))
    return Table(caption, (corner, *names), tuple(rows), kind="heat")


def level(part: float) -> int:
    """A share as a level from 0 to 9."""
    return min(9, max(0, round(9 * part)))


def of_values(caption: str, columns: Sequence[Any], rows: Sequence[Sequence[Any]], note: str = "") -> Table:
    """A table of plain values: numbers with up to four decimals, and text."""
    made = tuple(tuple(_cell(value) for value in row) for row in rows)
    words = frozenset(
        position
        for position in range(len(columns))
        if any(isinstance(row[position], str) and not _numeric(row[position]) for row in rows)
    )
    return Table(caption, tuple(map(str, columns)), made, words, note=note)


def _numeric(text: str) -> bool:
    """Whether a text begins with a number, as in ``77.1 ± 0.3``, ``+1.2`` or ``–``."""
    return text == NOTHING or text.lstrip("+-−–").lstrip()[:1].isdigit()


def _cell(value: Any) -> Cell:
    if value is None:
        return Cell(NOTHING)
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value)
        return Cell(text, _leading(text))
    if abs(value) > 1e300 or value != value:
        return Cell(str(value)[:20])  # NaN, infinite, or an integer too large for a float
    return Cell(str(value) if isinstance(value, int) else f"{value:.4f}".rstrip("0").rstrip("."), float(value))


def _leading(text: str) -> float | None:
    """The leading number of a text such as ``77.1 ± 0.3``, by which columns are sorted."""
    if not _numeric(text):
        return None
    first = text.replace("−", "-").split("±")[0].strip().rstrip("%").strip()
    try:
        found = float(first.split()[0])
    except (ValueError, IndexError):
        return None
    return found if abs(found) < float("inf") else None
