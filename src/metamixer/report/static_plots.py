"""The plots of a report as PNG and SVG files for papers and slides, in colours safe for colour blindness."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metamixer.config.yaml_file import RecipeError
from metamixer.core.text import clean, percent
from metamixer.metrics.network_scores import Score
from metamixer.report.curves import curves, overlaid, robustness
from metamixer.report.per_class import MOST_CLASSES, of_classes, square
from metamixer.report.read_runs import RunFiles, read_all
from metamixer.report.svg_charts import INK, Chart
from metamixer.report.tables import share

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a6a00")  # Okabe and Ito's, less black
_DASHES = ("-", "--", ":", "-.")
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Noto Sans Arabic")
_COLUMNS, _WIDTH, _HEIGHT = 3, 3.4, 2.7  # panels per row; size of a panel in inches
_MOST_BARS = 60  # the largest readable bar chart


def plots(paths: Sequence[str | Path], folder: str | Path) -> list[Path]:
    """Write the plots of runs: curves, reliability, confusion, classes, robustness, and a comparison of several runs.

    Args:
        paths: folders of runs; studies have no plots.
        folder: output folder; each plot is written as ``.png`` and ``.svg``. With several runs, file names start with
            the number of the run.

    Returns:
        The files.

    Raises:
        RecipeError: a folder is neither a run nor a study, or ``folder`` is a file.
        OSError: the files cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder} is a file; the plots need a folder")
    runs, _ = read_all([paths] if isinstance(paths, str | Path) else paths)
    drawings: list[tuple[str, Callable[[], Any]]] = []
    if len(runs) > 1 and (charts := overlaid(runs)):
        drawings.append(("comparison", lambda charts=charts: _charts(charts)))  # type: ignore[misc]
    for number, run in enumerate(runs, start=1):
        before = f"{number}-{_slug(run.name)}-" if len(runs) > 1 else ""
        drawings += [(before + name, draw) for name, draw in _of_run(run)]
    folder.mkdir(parents=True, exist_ok=True)
    return [path for name, draw in drawings for path in _save(draw, folder, name)]


def _of_run(run: RunFiles) -> Iterator[tuple[str, Callable[[], Any]]]:
    if charts := curves(run):
        yield "curves", lambda: _charts(charts)
    found = run.evaluation
    if found is not None and (binned := [one for one in found.networks if one.reliability.whole]):
        yield "reliability", lambda: _reliability(binned)
    if found is not None and square(found, main := found.main) and len(found.classes) <= MOST_CLASSES:
        yield "confusion", lambda: _confusion(found.classes, main)
    base = run.baseline.evaluation if run.baseline else None
    if found is not None and len(found.classes) <= _MOST_BARS and (known := of_classes(found, base)):
        yield "classes", lambda: _classes(found.classes, *known)
    if hard := robustness(run):
        yield "robustness", lambda: _charts(hard)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:60] or "run"


def _save(draw: Callable[[], Any], folder: Path, name: str) -> list[Path]:
    import matplotlib
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    settings = {
        "text.parse_math": False,  # a class name may be $\frac$
        "font.family": [font for font in _FONTS if font in installed] or ["sans-serif"],
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#e3e6ea",
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "legend.frameon": False,
        "legend.fontsize": 7.5,
        "svg.hashsalt": "metamixer",  # for identical files of identical plots
    }
    written = []
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # characters without a font are drawn as boxes
        figure = draw()
        for suffix, metadata in (("png", None), ("svg", {"Date": None})):
            path = folder / f"{name}.{suffix}"
            figure.savefig(path, dpi=200, metadata=metadata)
            figure.set_layout_engine("none")  # the layout is done, and takes most of the time
            written.append(path)
    return written


def _figure(panels: int, width: float = _WIDTH, height: float = _HEIGHT) -> tuple[Any, Any]:
    """Create a figure with axes for each panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(_COLUMNS, panels)
    down = -(-panels // across)
    figure = Figure(figsize=(across * width, down * height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for unused in axes[panels:]:
        unused.set_axis_off()
    return figure, axes[:panels]


def _charts(charts: Sequence[Chart]) -> Any:
    figure, axes = _figure(len(charts))
    for axis, chart in zip(axes, charts, strict=True):
        for line in chart.lines:
            points = line.points(chart.xs)
            if not points:
                continue
            strong = line.colour == INK
            axis.plot(
                [x for x, _ in points],
                [100 * y if chart.shares else y for _, y in points],
                color="#1b1f24" if strong else COLOURS[line.colour % len(COLOURS)],
                linestyle="-" if strong else _DASHES[line.colour % len(_DASHES)],
                linewidth=1.6,
                marker="o" if len(points) <= 30 else "",
                markersize=2.5,
                label=_label(line.name),
            )
        axis.set_title(clean(chart.title), loc="left")
        axis.set_xlabel(chart.across)
        axis.set_ylabel("%" if chart.shares else "")
        axis.grid(True, axis="y")
        if len(chart.lines) > 1:
            axis.legend()
    return figure


def _reliability(networks: Sequence[Score]) -> Any:
    figure, axes = _figure(len(networks), 2.7, 2.9)
    for axis, one in zip(axes, networks, strict=True):
        bars = one.reliability.bars
        places, widths = [(bar[0] + bar[1]) / 2 for bar in bars], [0.92 * (bar[1] - bar[0]) for bar in bars]
        heights, gaps = [bar[3] for bar in bars], [bar[4] - bar[3] for bar in bars]
        axis.bar(places, heights, widths, color=COLOURS[0], label="accuracy")
        axis.bar(places, gaps, widths, bottom=heights, facecolor="none", edgecolor=COLOURS[1], hatch="////",
                 linewidth=0.8, label="to the confidence")  # fmt: skip
        axis.plot([0, 1], [0, 1], color="#1b1f24", linewidth=0.9, linestyle="--")
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", aspect="equal")
        error = "" if one.ece is None else f"\nECE {percent(one.ece)}"
        axis.set_title(f"{_label(one.name)}{error}", loc="left")
    axes[0].legend(loc="upper left")
    return figure


def _confusion(classes: Sequence[str], one: Score) -> Any:
    count = len(classes)
    side = max(3.2, 0.36 * count + 1.4)
    figure, axes = _figure(1, side, side)
    axis = axes[0]
    parts = [[value / (sum(row) or 1) for value in row] for row in one.confusion]
    axis.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    for y, row in enumerate(one.confusion):
        for x, value in enumerate(row):
            if value:
                colour = "white" if parts[y][x] > 0.55 else "#1b1f24"
                axis.text(x, y, str(value), ha="center", va="center", fontsize=6.5, color=colour)
    names = [_label(name) for name in classes]
    axis.set_xticks(range(count), names, rotation=90)
    axis.set_yticks(range(count), names)
    axis.set(xlabel="predicted", ylabel="true class")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title(f"{_label(one.name)}: images", loc="left")
    return figure


def _classes(classes: Sequence[str], one: Score, base: Score | None) -> Any:
    figure, axes = _figure(1, 5.2, max(1.6, 0.24 * len(classes) + 0.9))
    axis = axes[0]
    places = list(range(len(classes)))
    axis.barh(places, [100 * (value or 0) for value in one.per_class], 0.62, color=COLOURS[0], label=_label(one.name))
    if base is not None:
        known = [(place, 100 * value) for place, value in zip(places, base.per_class, strict=True) if value is not None]
        axis.plot([value for _, value in known], [place for place, _ in known], "D", color=COLOURS[1], markersize=4,
                  markeredgecolor="white", label="baseline")  # fmt: skip
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axis.set_yticks(places, [_label(name) for name in classes])
    axis.set_ylim(len(classes) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel(f"accuracy of the class, %; all: {share(one.accuracy).text}")
    return figure


def _label(name: str, most: int = 28) -> str:
    """A shortened name; matplotlib leaves names that start with an underscore out of legends."""
    name = clean(name)
    name = name if len(name) <= most else f"{name[: most - 1]}…"
    return f"\u200b{name}" if name.startswith("_") else name
