"""What was found, as JSON for programs and as Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.bars import Judged, judge
from benchmarks.results import Figure, Measured, Section, Suite
from benchmarks.settings import Settings
from metamixer.core.text import clean


@dataclass(frozen=True)
class Findings:
    """All suites, with the settings and the machine that they are from."""

    settings: Settings
    environment: Mapping[str, Any]
    suites: tuple[Suite, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values: every sample, and what follows from them."""
        return {
            "environment": dict(self.environment),
            "settings": asdict(self.settings),
            "bars": [_judged(row) for row in judge(self.suites)],
            "suites": [
                {"name": suite.name, "seconds": suite.seconds, "sections": [_section(part) for part in suite.sections]}
                for suite in self.suites
            ],
        }


def _judged(row: Judged) -> dict[str, Any]:
    figure = None if row.figure is None else _figure(row.figure)
    return {"bar": asdict(row.bar), "where": row.where, "figure": figure, "verdict": row.verdict}


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "measured": [
            {**asdict(each), "median": each.median, "best": each.best, "rate": each.rate} for each in section.measured
        ],
        "figures": [_figure(each) for each in section.figures],
        "missing": [asdict(each) for each in section.missing],
        "notes": list(section.notes),
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {**asdict(figure), "median": figure.median}


def write(findings: Findings, folder: Path) -> None:
    """``bench.json`` and ``bench.md``."""
    (folder / "bench.json").write_text(json.dumps(findings.as_dict(), indent=1), encoding="utf-8")
    (folder / "bench.md").write_text(markdown(findings), encoding="utf-8")


QUICK = "A quick run: toy sizes that show that everything works. Its ratios and verdicts say nothing about speed."


def markdown(findings: Findings) -> str:
    """The page: machine, bars, then every section."""
    lines = ["# Benchmark", "", *_machine(findings), "", "## Bars", ""]
    lines += [
        "A figure is the median of the ratios (or differences) inside each round; the last number is that of the best "
        "rounds. The verdict is by the median.",
        "",
        *table(("what", "where", "must", "aim", "measured", "best", "verdict"), map(bar_row, judge(findings.suites))),
    ]
    for suite in findings.suites:
        lines += ["", f"## {suite.name} ({suite.seconds:.0f} s)"]
        for section in suite.sections:
            lines += _page(section)
    return "\n".join(lines) + "\n"


def _machine(findings: Findings) -> list[str]:
    env, settings = findings.environment, findings.settings
    versions = ", ".join(f"{name} {value}" for name, value in env["versions"].items() if value)
    lines = [
        f"- machine: {env['processor']}, {env['cpus']} cores, {env['threads']} threads, GPU {env['gpu'] or 'none'}",
        f"- system: {env['platform']}, Python {env['python']}",
        f"- versions: {versions}",
        f"- settings: {settings.rounds} rounds, batch size {settings.batch_size}, on {settings.device}",
    ]
    if settings.quick:
        lines.append("- **--quick: tiny sizes. These numbers show that everything runs, and nothing else.**")
    return [clean(line) for line in lines]


def bar_row(row: Judged) -> tuple[str, ...]:
    """The cells of a judged figure."""
    bar, sign = row.bar, "≥" if row.bar.higher else "≤"
    aim = "" if bar.aim is None else f"{bar.aim:g}"
    if row.figure is None:
        return (bar.what, "", f"{sign} {bar.must:g} {bar.unit}", aim, "", "", row.verdict)
    where = row.where if row.figure.name in row.where else f"{row.where}: {row.figure.name}"
    return (
        bar.what, where, f"{sign} {bar.must:g} {bar.unit}", aim, amount(row.figure.median, row.figure.unit),
        amount(row.figure.best, row.figure.unit), row.verdict,
    )  # fmt: skip


def _page(section: Section) -> list[str]:
    lines = ["", f"### {clean(section.title)}", ""]
    if section.measured:
        noted = any(each.note for each in section.measured)
        columns = ("case", "median", "best", "a second", *(("note",) if noted else ()))
        lines += [*table(columns, (case_row(each, noted) for each in section.measured)), ""]
    if section.figures:
        lines += [*table(("figure", "median", "best"), map(figure_row, section.figures)), ""]
    lines += [f"- not measured: {clean(each.name)}: {clean(each.reason)}" for each in section.missing]
    lines += [f"- {clean(note)}" for note in section.notes]
    return lines


def case_row(each: Measured, noted: bool = False) -> tuple[str, ...]:
    """Name, median, best, items a second, and the note if there is a column for it."""
    rate = "" if each.rate is None else f"{each.rate:,.0f}"
    note = (each.note,) if noted else ()
    return (each.name, amount(each.median, each.unit), amount(each.best, each.unit), rate, *note)


def figure_row(figure: Figure) -> tuple[str, ...]:
    """Name, median, that of the best rounds."""
    return (figure.name, amount(figure.median, figure.unit), amount(figure.best, figure.unit))


def amount(value: float, unit: str) -> str:
    """A number with its unit.

    >>> amount(0.0123, "s"), amount(12.3, "s"), amount(1.0472, "x"), amount(34.56, "x"), amount(1234.5, "MiB")
    ('12.3 ms', '12.3 s', '1.047', '34.6', '1,234 MiB')
    """
    if unit == "s":
        return f"{value:.2f} s" if 1 <= abs(value) < 10 else f"{value:.1f} s" if abs(value) >= 10 else _milli(value)
    if unit == "x":
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,.0f} {unit}"


def _milli(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.0f} ms" if abs(value) >= 100 else f"{value:.1f} ms" if abs(value) >= 1 else f"{value:.3f} ms"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table.

    >>> table(("a", "b"), [("1", "x|y")])
    ['| a | b |', '|---|---|', '| 1 | x/y |']
    """
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [f"| {' | '.join(clean(cell).replace('|', '/') for cell in row)} |" for row in rows]
