"""One picture of a benchmark: every bar, and below it panels of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metamixer.bench.bars import Judged, judge
from metamixer.bench.report import amount
from metamixer.bench.results import Section, Suite
from metamixer.core.text import clean

COLUMN, ROW, FRAME = 7.2, 0.22, 0.95  # inches: a column's width, a row's height, title and axis of a panel
LABELS, VALUES = 0.40, 0.14  # shares of a column: names to the left of the bars, numbers to their right
_COLOURS = {"aim": "#1a7f37", "pass": "#4a90d9", "FAIL": "#c62828"}
_MEANING = {"aim": "aim reached", "pass": "limit kept", "FAIL": "limit not kept"}
_TEXT: dict[str, Any] = {"parse_math": False, "color": "#222222"}
_MOST_ROWS, _MOST_SHARE = 40, 2.0


@dataclass(frozen=True)
class Row:
    """A line of a panel: its median, its samples, and what is written beside it."""

    name: str
    value: float
    samples: tuple[float, ...]
    text: str
    colour: str = "#4a90d9"


@dataclass(frozen=True)
class Panel:
    """Rows with one axis.

    Args:
        title: of the panel.
        axis: what the numbers are.
        rows: from top to bottom.
        line: where a line is drawn, or None.
        most: where the axis ends; None: behind the longest bar.
    """

    title: str
    axis: str
    rows: tuple[Row, ...]
    line: float | None = None
    most: float | None = None

    @property
    def height(self) -> float:
        """In inches."""
        return FRAME + ROW * len(self.rows)


def draw(suites: Sequence[Suite], path: Path) -> None:
    """Write the picture as a PNG."""
    first, others = bars(suites), panels(suites)
    heights, places = [0.0, 0.0], []
    for panel in others:
        column = heights.index(min(heights))
        places.append((column, heights[column]))
        heights[column] += panel.height
    above = first.height if first else 0.0
    width, total = 2 * COLUMN, max(1.0, above + max(heights))
    figure = Figure(figsize=(width, total), facecolor="white")
    FigureCanvasAgg(figure)
    if first:
        _panel(figure, first, 0.0, 0.0, width, total)
    for panel, (column, top) in zip(others, places, strict=True):
        _panel(figure, panel, column * COLUMN, above + top, COLUMN, total)
    figure.savefig(path, dpi=100)


def bars(suites: Sequence[Suite]) -> Panel | None:
    """Every figure as a share of its limit."""
    rows = tuple(_bar(row) for row in judge(suites) if row.figure is not None)
    return Panel("Share of the limit that is used", "1 is the limit", rows, 1.0, _MOST_SHARE) if rows else None


def panels(suites: Sequence[Suite]) -> list[Panel]:
    """The cases of each section; of a suite that goes through many networks, those of the first."""
    made = []
    for suite in suites:
        for section in suite.sections:
            if not section.measured or not _worth(suite, section):
                continue
            rows = tuple(
                Row(each.name, each.median, each.samples, amount(each.median, each.unit)) for each in section.measured
            )
            axis = "seconds" if section.measured[0].unit == "s" else section.measured[0].unit
            made.append(Panel(section.title, axis, rows[:_MOST_ROWS]))
    return made


def _worth(suite: Suite, section: Section) -> bool:
    if suite.name != "step":
        return suite.name != "floor"
    network = suite.sections[0].title.partition(": ")[2].partition(",")[0]
    return section.title.partition(": ")[2].partition(",")[0] == network


def _bar(row: Judged) -> Row:
    assert row.figure is not None  # noqa: S101
    where = row.where.partition(": ")[2]
    # A rival is measured against several of ours.
    mine = row.figure.name.partition(" / ")[2] if row.where.startswith("epoch") else ""
    limit = f"{'≥' if row.bar.higher else '≤'} {row.bar.must:g}"
    note = ", ".join(part for part in (where, mine) if part)
    return Row(
        f"{row.bar.what}  ({note})" if note else row.bar.what,
        row.bar.share(row.figure.median),
        tuple(row.bar.share(sample) for sample in row.figure.samples if sample > 0),
        f"{amount(row.figure.median, row.figure.unit)}  ({limit})",
        _COLOURS[row.verdict],
    )


def _panel(figure: Figure, panel: Panel, left: float, top: float, width: float, total: float) -> None:
    """Draw it with its upper left corner ``left`` and ``top`` inches from that of the picture."""
    page = figure.get_figwidth()
    low = total - top - panel.height + 0.5
    labels, values = LABELS * width, VALUES * width
    box = (left + labels) / page, low / total, (width - labels - values) / page, (panel.height - FRAME) / total
    axes = figure.add_axes(box)
    places = range(len(panel.rows))
    most = max(max(row.value, *row.samples, 0.0) for row in panel.rows) if panel.most is None else panel.most
    axes.barh(places, [row.value for row in panel.rows], color=[row.colour for row in panel.rows], height=0.62)
    to_side = axes.get_yaxis_transform()
    room = int(labels * 17)  # characters
    for place, row in zip(places, panel.rows, strict=True):
        axes.plot(row.samples, [place] * len(row.samples), "|", color="#222222", markersize=6, markeredgewidth=0.7)
        axes.text(1.01, place, row.text, va="center", fontsize=7.5, transform=to_side, **_TEXT)
        axes.text(
            -0.01, place, _short(row.name, room), va="center", ha="right", fontsize=7.5, transform=to_side, **_TEXT
        )
    axes.set_xlim(0, 1.04 * (most or 1.0))
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(panel.axis, fontsize=7.5, labelpad=2)
    axes.set_title(clean(panel.title), fontsize=9.5, fontweight="bold", loc="left", **_TEXT)
    if panel.line is not None:
        axes.axvline(panel.line, color="#222222", linewidth=1)
        marks = [axes.barh([0], [0], color=colour) for colour in _COLOURS.values()]
        axes.legend(
            marks, _MEANING.values(), loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=7, frameon=False
        )


def _short(name: str, most: int) -> str:
    name = clean(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"
