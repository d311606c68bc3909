"""Numbers and names in the table of a study as text, plain and escaped."""

from __future__ import annotations

from collections.abc import Sequence

from metamixer.studies.columns import METRICS
from metamixer.studies.statistics import Difference, Pooled, Spread


def spread_text(name: str, found: Spread | None) -> str:
    """A metric as text, such as ``71.0 ± 1.4``; ``name`` is that of the metric."""
    if found is None:
        return "–"
    metric = METRICS[name]
    mean = f"{found.mean * metric.scale:.{metric.digits}f}"
    return mean if found.sd is None else f"{mean} ± {found.sd * metric.scale:.{metric.digits}f}"


def difference_text(name: str, found: Difference | Pooled | None) -> str:
    """A difference as text, such as ``+2.0 [−10.7, +14.7]``; ``name`` is that of the metric."""
    if found is None:
        return "–"
    metric = METRICS[name]

    def signed(value: float) -> str:
        shown = round(value * metric.scale, metric.digits) + 0.0  # no minus before a 0
        return f"{shown:+.{metric.digits}f}".replace("-", "−")

    if found.low is None or found.high is None:
        return signed(found.mean)
    return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"


def markdown_table(rows: Sequence[Sequence[str]], texts: int) -> str:
    """A Markdown table of rows, with the header first; the columns after the first ``texts`` are numbers."""
    lines = ["| " + " | ".join(markdown(cell) for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * texts + "---:|" * (len(rows[0]) - texts))
    return "\n".join(lines) + "\n"


def markdown(text: str) -> str:
    """Text on one line, escaped for Markdown."""
    escaped = "".join(f"\\{sign}" if sign in "\\`*_|<>[]" else sign for sign in text)
    return " ".join(escaped.split())


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def latex(text: str) -> str:
    """Text on one line, escaped for LaTeX."""
    return " ".join("".join(_LATEX.get(sign, sign) for sign in text).split())
