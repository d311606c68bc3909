"""The table of a study, and the same table as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from metamixer.core.text import spreadsheet_cell
from metamixer.studies.columns import FIGURES
from metamixer.studies.statistics import Difference, Spread, paired, spread
from metamixer.studies.study_file import Cell, Study, fits, title_of

Row = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Entry:
    """One row.

    Args:
        row: its names on the axes.
        seeds: that have ended.
        figures: over seeds, by name.
        differences: from the baseline, by name of the figure; empty for the baseline itself.
        published: with its source.
    """

    row: Row
    seeds: int
    figures: Mapping[str, Spread]
    differences: Mapping[str, Difference]
    published: str | None


@dataclass(frozen=True)
class Table:
    """What came out.

    Args:
        study: what was asked.
        entries: its rows.
        notes: what a reader has to know, in sentences.
    """

    study: Study
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, study: Study, figures: Mapping[Cell, Mapping[str, float]], notes: Sequence[str] = ()) -> Table:
        """From the figures of the runs that have ended."""
        by_row: dict[Row, dict[int, Mapping[str, float]]] = {row: {} for row in study.rows}
        for cell, found in figures.items():
            by_row[cell.row][cell.seed] = found
        file = study.content
        compared = [file.figures[0]] if file.compare is None else file.compare
        entries = []
        for row, seeds in by_row.items():
            columns = {name: {seed: found[name] for seed, found in seeds.items() if name in found} for name in FIGURES}
            means = {name: made for name, values in columns.items() if (made := spread(values)) is not None}
            differences = {}
            if (baseline := study.baseline_of(row)) is not None:
                for name in compared:
                    other = {seed: found[name] for seed, found in by_row[baseline].items() if name in found}
                    if (apart := paired(columns[name], other, file.confidence)) is not None:
                        differences[name] = apart
            published = [f"{each.figure} ({each.source})" for each in file.published if fits(row, each.where)]
            entries.append(Entry(row, len(seeds), means, differences, "; ".join(published) or None))
        return cls(study, tuple(entries), tuple(notes))

    @property
    def caption(self) -> str:
        """What the numbers are."""
        file = self.study.content
        text = f"{file.title}. Mean ± standard deviation over seeds {', '.join(map(str, file.seeds))}."
        if file.baseline:
            names = " + ".join(file.baseline.values())
            text += (
                f" Differences from {names}: means of differences seed by seed, with their {100 * file.confidence:g} % "
                "confidence intervals (paired t)."
            )
        return text + " Test images chose nothing."

    @property
    def header(self) -> list[str]:
        """The columns."""
        found = [title_of(axis) for axis in self.study.axes] + ["seeds"]
        for name in self.study.content.figures:
            found.append(FIGURES[name].title)
            if self._compares(name):
                found.append("difference")
        return found + (["published (not measured here)"] if any(entry.published for entry in self.entries) else [])

    def cells(self, entry: Entry) -> list[str]:
        """A row as text, one for each column of ``header``."""
        found = [name for _, name in entry.row] + [f"{entry.seeds}"]
        for name in self.study.content.figures:
            found.append(_spread_text(name, entry.figures.get(name)))
            if self._compares(name):
                baseline = bool(self.study.content.baseline) and self.study.baseline_of(entry.row) is None
                found.append("baseline" if baseline else _difference_text(name, entry.differences.get(name)))
        return found + ([entry.published or "–"] if "published (not measured here)" in self.header else [])

    def _compares(self, name: str) -> bool:
        file = self.study.content
        return bool(file.baseline) and name in (file.compare if file.compare is not None else file.figures[:1])

    def as_markdown(self) -> str:
        """A Markdown table with caption and notes."""
        rows = [self.header, *(self.cells(entry) for entry in self.entries)]
        lines = ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in rows]
        axes = len(self.study.axes)
        lines.insert(1, "|" + "---|" * axes + "---:|" * (len(self.header) - axes))
        notes = "".join(f"\n- {_markdown(note)}" for note in self.notes)
        return f"{_markdown(self.caption)}\n\n" + "\n".join(lines) + "\n" + (notes + "\n" if notes else "")

    def as_latex(self) -> str:
        """A LaTeX table (booktabs)."""
        axes = len(self.study.axes)
        lines = [
            r"\begin{table}",
            rf"\caption{{{_latex(self.caption)}}}",
            rf"\begin{{tabular}}{{{'l' * axes}{'r' * (len(self.header) - axes)}}}",
            r"\toprule",
            " & ".join(map(_latex, self.header)) + r" \\",
            r"\midrule",
            *(" & ".join(map(_latex, self.cells(entry))) + r" \\" for entry in self.entries),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {_latex(note)}" for note in self.notes),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def as_csv(self) -> str:
        """Plain numbers, all figures that were measured: a line for each row."""
        names = [name for name in FIGURES if any(name in entry.figures for entry in self.entries)]
        compared = [name for name in names if self._compares(name)]
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        differences = [f"{name}_{part}" for name in compared for part in ("difference", "low", "high")]
        writer.writerow(
            [
                *self.study.axes,
                "seeds",
                *(f"{name}_{part}" for name in names for part in ("mean", "sd")),
                *differences,
            ]
        )
        for entry in self.entries:
            row: list[Any] = [*(spreadsheet_cell(name) for _, name in entry.row), entry.seeds]
            for name in names:
                found = entry.figures.get(name)
                row += [None, None] if found is None else [found.mean, found.sd]
            for name in compared:
                apart = entry.differences.get(name)
                row += [None] * 3 if apart is None else [apart.mean, apart.low, apart.high]
            writer.writerow(row)
        return text.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "format": "metamixer-study-1",
            "title": self.study.content.title,
            "table": {
                "caption": self.caption,
                "columns": self.header,
                "rows": [self.cells(entry) for entry in self.entries],
                "notes": list(self.notes),
            },
            "figures": {
                name: {"title": FIGURES[name].title, "scale": FIGURES[name].scale, "higher": FIGURES[name].higher}
                for name in self.study.content.figures
            },
            "rows": [
                {
                    **dict(entry.row),
                    "label": " + ".join(name for _, name in entry.row),
                    "seeds": entry.seeds,
                    "figures": {name: vars(found) for name, found in entry.figures.items()},
                    "differences": {name: vars(found) for name, found in entry.differences.items()},
                    "published": entry.published,
                }
                for entry in self.entries
            ],
        }


def _spread_text(name: str, found: Spread | None) -> str:
    if found is None:
        return "–"
    figure = FIGURES[name]
    mean = f"{found.mean * figure.scale:.{figure.digits}f}"
    return mean if found.sd is None else f"{mean} ± {found.sd * figure.scale:.{figure.digits}f}"


def _difference_text(name: str, found: Difference | None) -> str:
    if found is None:
        return "–"
    figure = FIGURES[name]

    def signed(value: float) -> str:
        shown = round(value * figure.scale, figure.digits) + 0.0  # no minus before a 0
        return f"{shown:+.{figure.digits}f}".replace("-", "−")

    if found.low is None or found.high is None:
        return signed(found.mean)
    return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"


def _markdown(text: str) -> str:
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


def _latex(text: str) -> str:
    return " ".join("".join(_LATEX.get(sign, sign) for sign in text).split())
