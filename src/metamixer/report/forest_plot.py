"""Forest plots: differences from the baseline of a study with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from metamixer.report.svg_charts import ticks

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 640, 270, 120, 8, 26


def forests(results: Any) -> list[dict[str, Any]]:
    """A plot for each metric that a study compares, as SVG coordinates; empty if nothing is compared.

    Args:
        results: the content of ``results.json``.

    Raises:
        ValueError: it has another shape.
    """
    figures, rows = (results.get(key) if isinstance(results, dict) else None for key in ("figures", "rows"))
    if figures is None or rows is None:
        return []
    try:
        return [
            made
            for name, figure in figures.items()
            if (made := _forest(str(figure["title"]), float(figure["scale"]), _differences(name, rows))) is not None
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its differences have another shape: {error!r}") from error


def _differences(name: str, rows: Any) -> list[tuple[str, Mapping[str, Any]]]:
    return [(str(row["label"]), row["differences"][name]) for row in rows if name in row["differences"]]


def _forest(title: str, scale: float, found: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    values = [scale * each[key] for _, each in found for key in ("mean", "low", "high") if each[key] is not None]
    if not values or not all(map(math.isfinite, values)):
        return None
    marks = ticks(min(0.0, *values), max(0.0, *values))
    low, high = marks[0], marks[-1]

    def across(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 2)

    bottom = _TOP + _ROW * len(found)
    rows = []
    for place, (label, each) in enumerate(found):
        mean = scale * each["mean"]
        ends = None if each["low"] is None else (scale * each["low"], scale * each["high"])
        rows.append(
            {
                "label": label,
                "y": _TOP + _ROW * (place + 0.5),
                "x": across(mean),
                "ends": ends and tuple(map(across, ends)),
                "text": f"{mean:+.3g}" + (f" [{ends[0]:+.3g}, {ends[1]:+.3g}]" if ends else ""),
            }
        )
    return {
        "title": title,
        "size": (_WIDTH, bottom + 22),
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": bottom,
        "zero": across(0.0),
        "ticks": [(across(mark), f"{mark:g}") for mark in marks],
        "rows": rows,
    }
