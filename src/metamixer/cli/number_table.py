"""Tables of numbers for terminals of any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text


class NumberTable(Table):
    """A table of numbers with a first column of names, for any terminal width: only names are truncated, never numbers.

    If it is too wide, headers are wrapped, then names are truncated, then columns are split into several tables.
    """

    _NAME = 14  # the least number of characters of a name
    _HEADER = 12  # the least number of characters of a word in a header

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table, in several parts if necessary."""
        if self.__rich_measure__(console, options.update(width=10_000)).maximum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        for part in self._parts(options.max_width):
            yield from part.__rich_console__(console, options)

    def _parts(self, width: int) -> Iterator[Table]:
        first, *others = self.columns
        widths = [_narrowest(column, self._HEADER) for column in others]
        name = max(
            [cell_len(str(cell)) for cell in first.cells] + [cell_len(word) for word in str(first.header).split()]
        )
        while others:
            count, used = 0, 4  # two spaces on either side, and three between columns
            while count < len(others) and (not count or used + widths[count] + 3 + self._NAME <= width):
                used += widths[count] + 3
                count += 1
            yield self._part(others[:count], min(name, max(self._NAME, width - used)), widths[:count])
            others, widths = others[count:], widths[count:]

    def _part(self, columns: Sequence[Column], name: int, widths: Sequence[int]) -> Table:
        part = Table(box=self.box)
        part.add_column(self.columns[0].header, width=name)
        for column, width in zip(columns, widths, strict=True):
            header = Text(str(column.header), overflow="ellipsis")
            part.add_column(header, justify="right", width=width, no_wrap=False)
        cells = [list(column.cells) for column in (self.columns[0], *columns)]
        for number, row in enumerate(self.rows):
            title = Text(str(cells[0][number]), no_wrap=True, overflow="ellipsis")
            part.add_row(title, *(column[number] for column in cells[1:]), style=row.style, end_section=row.end_section)
        return part


def _narrowest(column: Column, most: int) -> int:
    """The width in characters of all cells of a column, and of the words of its header up to ``most`` characters."""
    words = [min(most, cell_len(word)) for word in str(column.header).split()]
    return max([1, *words, *(cell_len(str(cell)) for cell in column.cells)])
