"""Line charts and reliability diagrams as values for the SVG template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metamixer.core.text import counted, percent
from metamixer.metrics.calibration import Reliability
from metamixer.metrics.network_scores import Score
from metamixer.report.network_tables import titled

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 34  # margins of the plot; the title and the legend are outside of the SVG
COLOURS, DASHES = 7, ("", "7 3", "2 2.5", "9 3 2 3")
INK = -1  # the colour of text, used for ensembles
_MOST_POINTS = 500  # the largest visible number of points of a line
_FEW_POINTS = 30  # up to this number, points are marked by dots


@dataclass(frozen=True)
class Line:
    """Values over the ``xs`` of a chart; None: not measured. ``colour`` counts from 0, or is ``INK``."""

    name: str
    values: tuple[float | None, ...]
    colour: int

    def points(self, xs: Sequence[float]) -> list[tuple[float, float]]:
        """The measured points."""
        return [(x, y) for x, y in zip(xs, self.values, strict=True) if y is not None]

    @property
    def last(self) -> float | None:
        """The last measured value."""
        return next((value for value in reversed(self.values) if value is not None), None)


@dataclass(frozen=True)
class Chart:
    """Lines over one axis. ``shares``: whether values are shares, shown in percent."""

    title: str
    across: str
    xs: tuple[float, ...]
    lines: tuple[Line, ...]
    shares: bool = False

    def thinned(self) -> Chart:
        """The chart with at most as many points as are visible, including the last one."""
        stride = math.ceil(len(self.xs) / _MOST_POINTS)
        kept = range((len(self.xs) - 1) % stride if stride > 1 else 0, len(self.xs), max(1, stride))
        lines = tuple(Line(one.name, tuple(one.values[k] for k in kept), one.colour) for one in self.lines)
        return Chart(self.title, self.across, tuple(self.xs[k] for k in kept), lines, self.shares)

    def shown(self, value: float | None) -> str:
        """A value as text."""
        if value is None:
            return "–"
        return percent(value) if self.shares else f"{value:.4g}"


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers that cover ``low`` to ``high``; with ``whole`` no fractions.

    >>> ticks(0.13, 0.52)
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    >>> ticks(1, 6, whole=True)
    [1, 2, 3, 4, 5, 6]
    """
    if not high - low > max(1e-200, 1e-9 * max(abs(low), abs(high))):  # too close for ticks between them
        room = max(0.1 * abs(high), 1e-9)
        high, low = high + room, low - room
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    found = [k * step for k in range(first, last + 1)]
    return found if whole else [round(value, 12 - math.floor(math.log10(step))) for value in found]


def drawn(chart: Chart) -> dict[str, Any]:
    """The chart with all coordinates: values for the SVG template, and for the script of the page."""
    chart = chart.thinned()
    values = [value for line in chart.lines for value in line.values if value is not None]
    y_ticks = ticks(min(values, default=0), max(values, default=1))
    if chart.shares:
        y_ticks = [tick for tick in y_ticks if -1e-9 <= tick <= 1 + 1e-9] or [0, 1]
    low, high = y_ticks[0], y_ticks[-1]
    first, last = chart.xs[0], chart.xs[-1]
    alone = not last > first

    def across(x: float) -> float:
        part = 0.5 if alone else (x - first) / (last - first)
        return round(LEFT + part * (WIDTH - LEFT - RIGHT), 2)

    def up(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 2)

    lines = []
    for line in chart.lines:
        points = [(across(x), up(y)) for x, y in line.points(chart.xs)]
        lines.append(
            {
                "name": line.name,
                "path": "".join(f"{'L' if k else 'M'}{x} {y}" for k, (x, y) in enumerate(points)),
                "dots": points if len(points) <= _FEW_POINTS else [],
                "last": chart.shown(line.last),
                "style": "ink" if line.colour == INK else f"c{line.colour % COLOURS}",
                "dash": "" if line.colour == INK else DASHES[line.colour % len(DASHES)],
            }
        )
    whole = all(float(x).is_integer() for x in chart.xs)
    x_ticks = [first] if alone else [x for x in ticks(first, last, 6, whole=whole) if first <= x <= last]
    return {
        "title": chart.title,
        "across": chart.across,
        "lines": lines,
        "x_ticks": [(across(x), f"{x:g}") for x in x_ticks],
        "y_ticks": [(up(y), f"{100 * y:g} %" if chart.shares else f"{y:.5g}") for y in y_ticks],
        "box": {"left": LEFT, "top": TOP, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM},
        "size": (WIDTH, HEIGHT),
        "data": {
            "across": chart.across,
            "xs": chart.xs,
            "at": [across(x) for x in chart.xs],
            "shares": chart.shares,
            "lines": [
                {"name": line.name, "values": [None if v is None else float(f"{v:.6g}") for v in line.values]}
                for line in chart.lines
            ],
        },
    }


def reliability(network: Score) -> dict[str, Any] | None:
    """A reliability diagram with all coordinates; None if there are no bins."""
    bins = network.reliability
    name = titled(network)
    if not bins.whole or not sum(bins.count):
        return None
    side, strip = 200.0, 36.0
    left, top = 40.0, 8.0
    most = max(bins.count)
    bars = []
    for low, high, count, accuracy, confidence in bins.bars:
        upper, lower = max(accuracy, confidence), min(accuracy, confidence)
        bars.append(
            {
                "x": round(left + side * low + 0.75, 2),
                "width": round(max(1.0, side * (high - low) - 1.5), 2),
                "count_height": round(strip * count / most, 2),
                "y": round(top + side * (1 - lower), 2),
                "height": round(side * lower, 2),
                "gap_y": round(top + side * (1 - upper), 2),
                "gap_height": round(side * (upper - lower), 2),
                "over": confidence > accuracy,
                "hint": f"confidence {low:.2f} to {high:.2f}: {counted(count, 'image')}, mean confidence "
                f"{percent(confidence)}, accuracy {percent(accuracy)}",
            }
        )
    return {
        "name": name,
        "bars": bars,
        "left": left,
        "top": top,
        "side": side,
        "strip": strip,
        "label": _label(name, network, bins),
    }


def _label(name: str, network: Score, bins: Reliability) -> str:
    error = "" if network.ece is None else f", expected calibration error {percent(network.ece)}"
    return f"Reliability of {name} on {counted(sum(bins.count), 'image')}{error}"
