"""``metamixer bench``: how fast it is here, against plain steps, against others, against what was promised."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.text import Text

from metamixer.bench.bars import judge
from metamixer.bench.report import QUICK, Findings, bar_row, case_row, figure_row
from metamixer.bench.results import Section
from metamixer.bench.running import SUITES, run
from metamixer.bench.settings import NETWORKS, PRECISIONS, Settings, pick, words
from metamixer.cli.console import console, say, table, titled
from metamixer.cli.exit_codes import told
from metamixer.config.yaml_file import RecipeError
from metamixer.core import trusted_imports
from metamixer.core.text import clean

_STYLES = {"aim": "green", "pass": "green", "FAIL": "red"}


@told
def bench(
    suites: str | None,
    rounds: int | None,
    networks: str | None,
    batch_size: int | None,
    precisions: str | None,
    device: str,
    threads: int | None,
    quick: bool,
    out: Path,
) -> int:
    """Measure, write the folder, show the tables."""
    chosen = pick(suites, list(SUITES), "suite")
    if threads is not None and threads < 1:
        raise RecipeError(f"--threads {threads}: at least 1 would work")
    if out.exists() and not out.is_dir():
        raise RecipeError(f"{out} is a file; --out names a folder")
    if networks is not None and not words(networks):
        raise RecipeError(f"no network is named; --networks {','.join(NETWORKS)} is the default")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trusted_imports.allow(*trusted_imports.named_in(words(networks or "")))
    settings = Settings(
        networks=words(networks) if networks is not None else ("resnet8",) if quick else NETWORKS,
        precisions=pick(precisions, PRECISIONS, "precision"),
        batch_size=batch_size if batch_size is not None else 8 if quick else 128,
        rounds=rounds if rounds is not None else 2 if quick else 7,
        device=device,
        quick=quick,
    )
    settings.check()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        findings = run(settings, chosen, out, told=lambda line: say(line, style="dim", stderr=True))
    finally:
        torch.set_num_threads(before)
    _show(findings)
    if quick:
        say(QUICK, style="yellow")
    say(f"written: {out / 'bench.md'}, bench.json and bench.png beside it")
    return 0


def _show(findings: Findings) -> None:
    for suite in findings.suites:
        for section in suite.sections:
            _show_section(f"{suite.name}, {section.title}", section)
    made = table(["bar", "must", "aim", "measured", "best", "verdict"])
    for row in judge(findings.suites):
        what, where, *numbers, verdict = bar_row(row)
        style = _STYLES.get(verdict, "")
        made.add_row(
            Text(clean(f"{what} ({where})" if where else what)), *map(Text, numbers), Text(verdict, style=style)
        )
    console().print(titled("bars", made))


def _show_section(title: str, section: Section) -> None:
    if section.measured:
        made = table(["case", "median", "best", "a second"])
        for each in section.measured:
            made.add_row(*(Text(clean(cell)) for cell in case_row(each)))
        if section.figures:
            made.add_section()
        for figure in section.figures:
            made.add_row(*(Text(clean(cell)) for cell in figure_row(figure)), "")
        console().print(titled(title, made))
    for missing in section.missing:
        say(f"{title}: not measured: {missing.name}: {missing.reason}", style="yellow")
