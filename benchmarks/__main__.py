"""``python -m benchmarks``: measure training on this machine, against plain steps and other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.text import Text

from benchmarks.bars import judge
from benchmarks.report import QUICK, Findings, bar_row, case_row, figure_row
from benchmarks.results import Section
from benchmarks.running import SUITES, run
from benchmarks.settings import NETWORKS, PRECISIONS, Settings, pick, words
from metamixer.cli.console import console, say, table, titled
from metamixer.cli.exit_codes import report_faults
from metamixer.cli.options import DeviceName
from metamixer.config.yaml_file import RecipeError
from metamixer.core import trusted_imports
from metamixer.core.text import clean

_STYLES = {"aim": "green", "pass": "green", "FAIL": "red"}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def main(
    suite: Annotated[str | None, typer.Option(metavar="A,B", help=f"{', '.join(SUITES)}. [default: all]")] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of repetitions. [default: 7]")] = None,
    networks: Annotated[str | None, typer.Option(metavar="A,B", help=f"[default: {','.join(NETWORKS)}]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step of a small network. [default: 128]")] = None,
    precision: Annotated[str | None, typer.Option(metavar="32,bf16", help="One or both. [default: both]")] = None,
    device: Annotated[DeviceName, typer.Option(help="Device to measure on.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Number of CPU threads of torch.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke test with tiny sizes.")] = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder.")] = Path("runs/bench"),
) -> None:
    """Benchmark training on this machine, against plain training and other libraries."""
    raise typer.Exit(bench(suite, rounds, networks, batch_size, precision, device, threads, quick, out))


@report_faults
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
        raise RecipeError(f"--threads {threads}: expected at least 1")
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
        findings = run(settings, chosen, out, report=lambda line: say(line, style="dim", stderr=True))
    finally:
        torch.set_num_threads(before)
    _show(findings)
    if quick:
        say(QUICK, style="yellow")
    say(f"written: {out / 'bench.md'} and bench.json")
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


if __name__ == "__main__":
    app()
