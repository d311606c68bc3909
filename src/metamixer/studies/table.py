"""The table of a study, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from metamixer.core.text import spreadsheet_cell
from metamixer.studies.columns import METRICS
from metamixer.studies.pooling import Comparison, compare
from metamixer.studies.statistics import Difference, Spread, paired, spread
from metamixer.studies.study_file import Cell, Row, Study, fits, title_of
from metamixer.studies.table_text import difference_text, latex, markdown, markdown_table, spread_text


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Args:
        row: names on the axes.
        seeds: number of finished seeds.
        metrics: metrics over seeds, by name.
        differences: differences from the baseline, by metric; empty for the baseline itself.
        published: a published result with its source.
    """

    row: Row
    seeds: int
    metrics: Mapping[str, Spread]
    differences: Mapping[str, Difference]
    published: str | None


@dataclass(frozen=True)
class Table:
    """The result of a study.

    Args:
        study: the study.
        entries: rows of the table.
        notes: notes below the table, as sentences.
        pooled: pooled comparisons of rows, if the study file has ``pool``.
    """

    study: Study
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    pooled: tuple[Comparison, ...] = ()

    @classmethod
    def of(cls, study: Study, metrics: Mapping[Cell, Mapping[str, float]], notes: Sequence[str] = ()) -> Table:
        """Create the table from the metrics of the finished runs."""
        by_row: dict[Row, dict[int, Mapping[str, float]]] = {row: {} for row in study.rows}
        for cell, found in metrics.items():
            by_row[cell.row][cell.seed] = found
        file = study.content
        entries = []
        for row, seeds in by_row.items():
            columns = {name: {seed: found[name] for seed, found in seeds.items() if name in found} for name in METRICS}
            means = {name: made for name, values in columns.items() if (made := spread(values)) is not None}
            differences = {}
            if (baseline := study.baseline_of(row)) is not None:
                for name in file.compared:
                    other = {seed: found[name] for seed, found in by_row[baseline].items() if name in found}
                    if (apart := paired(columns[name], other, file.confidence)) is not None:
                        differences[name] = apart
            published = [f"{each.figure} ({each.source})" for each in file.published if fits(row, each.where)]
            entries.append(Entry(row, len(seeds), means, differences, "; ".join(published) or None))
        return cls(study, tuple(entries), tuple(notes), compare(study, by_row))

    @property
    def caption(self) -> str:
        """The caption, which explains the numbers."""
        file = self.study.content
        text = f"{file.title}. Mean ± standard deviation over seeds {', '.join(map(str, file.seeds))}."
        if file.baseline:
            names = " + ".join(file.baseline.values())
            text += (
                f" Differences from {names}: means of differences seed by seed, with their {100 * file.confidence:g} % "
                "confidence intervals (paired t)."
            )
        return text + " No model selection on test images."

    @property
    def header(self) -> list[str]:
        """The column headings."""
        found = [title_of(axis) for axis in self.study.axes] + ["seeds"]
        for name in self.study.content.metrics:
            found.append(METRICS[name].title)
            if self._compares(name):
                found.append("difference")
        return found + (["published (not measured here)"] if any(entry.published for entry in self.entries) else [])

    def cells(self, entry: Entry) -> list[str]:
        """The cells of a row as text, one for each column of ``header``."""
        found = [name for _, name in entry.row] + [f"{entry.seeds}"]
        for name in self.study.content.metrics:
            found.append(spread_text(name, entry.metrics.get(name)))
            if self._compares(name):
                baseline = bool(self.study.content.baseline) and self.study.baseline_of(entry.row) is None
                found.append("baseline" if baseline else difference_text(name, entry.differences.get(name)))
        return found + ([entry.published or "–"] if "published (not measured here)" in self.header else [])

    def _compares(self, name: str) -> bool:
        return bool(self.study.content.baseline) and name in self.study.content.compared

    @property
    def pooled_caption(self) -> str:
        """The caption of the pooled comparisons."""
        file = self.study.content
        if file.pool is None:
            return ""
        return (
            f"Pooled over {file.pool.over}: the mean of the mean paired differences in each, all of the same weight, "
            f"with its {100 * file.confidence:g} % confidence interval (stratified; t with Welch-Satterthwaite degrees "
            "of freedom)."
        )

    @property
    def pooled_rows(self) -> list[list[str]]:
        """The pooled comparisons as text, with the header first; empty if there are none."""
        if not self.pooled:
            return []
        names = self.study.content.compared
        rows = [["row", "against", "strata", "pairs", *(f"difference in {METRICS[name].title}" for name in names)]]
        for each in self.pooled:
            found = [each.differences.get(name) for name in names]
            strata, pairs = (max((getattr(one, key) for one in found if one), default=0) for key in ("strata", "pairs"))
            counts = [f"{strata} of {each.strata}", f"{pairs}"]
            labels = [" + ".join(name for _, name in row) for row in (each.row, each.against)]
            rows.append(labels + counts + [difference_text(name, one) for name, one in zip(names, found, strict=True)])
        return rows

    def as_markdown(self) -> str:
        """A Markdown table with caption and notes."""
        rows = [self.header, *(self.cells(entry) for entry in self.entries)]
        text = f"{markdown(self.caption)}\n\n" + markdown_table(rows, len(self.study.axes))
        if self.pooled:
            text += f"\n{markdown(self.pooled_caption)}\n\n" + markdown_table(self.pooled_rows, 2)
        notes = "".join(f"\n- {markdown(note)}" for note in self.notes)
        return text + (notes + "\n" if notes else "")

    def as_latex(self) -> str:
        """A LaTeX table (booktabs)."""
        axes = len(self.study.axes)
        lines = [
            r"\begin{table}",
            rf"\caption{{{latex(self.caption)}}}",
            rf"\begin{{tabular}}{{{'l' * axes}{'r' * (len(self.header) - axes)}}}",
            r"\toprule",
            " & ".join(map(latex, self.header)) + r" \\",
            r"\midrule",
            *(" & ".join(map(latex, self.cells(entry))) + r" \\" for entry in self.entries),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {latex(note)}" for note in self.notes),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def as_csv(self) -> str:
        """A CSV file with all measured metrics as plain numbers, one line per row."""
        names = [name for name in METRICS if any(name in entry.metrics for entry in self.entries)]
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
                found = entry.metrics.get(name)
                row += [None, None] if found is None else [found.mean, found.sd]
            for name in compared:
                apart = entry.differences.get(name)
                row += [None] * 3 if apart is None else [apart.mean, apart.low, apart.high]
            writer.writerow(row)
        return text.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "format": "metamixer-study-1",
            "title": self.study.content.title,
            "table": {
                "caption": self.caption,
                "columns": self.header,
                "rows": [self.cells(entry) for entry in self.entries],
                "notes": list(self.notes),
            },
            "pooled": {
                "table": {"caption": self.pooled_caption, "columns": self.pooled_rows[0], "rows": self.pooled_rows[1:]},
                "comparisons": [each.as_dict() for each in self.pooled],
            }
            if self.pooled
            else None,
            "figures": {
                name: {"title": METRICS[name].title, "scale": METRICS[name].scale, "higher": METRICS[name].higher}
                for name in self.study.content.metrics
            },
            "rows": [
                {
                    **dict(entry.row),
                    "label": " + ".join(name for _, name in entry.row),
                    "seeds": entry.seeds,
                    "figures": {name: vars(found) for name, found in entry.metrics.items()},
                    "differences": {name: vars(found) for name, found in entry.differences.items()},
                    "published": entry.published,
                }
                for entry in self.entries
            ],
        }
