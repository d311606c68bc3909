"""``metamixer study``: methods against each other, from one file to one table."""

from __future__ import annotations

import shlex
from pathlib import Path

from metamixer.cli.console import console, say, table, titled
from metamixer.cli.exit_codes import told
from metamixer.core.text import clean
from metamixer.studies import Ended, Engine, Halted, Study, Table, conduct, finished

FAILED = 1


@told
def study(
    file: Path, out: Path | None, jobs: int, threads: int | None, engine: Engine, address: str | None, dry_run: bool
) -> int:
    """Run what is missing of a study, and show its table."""
    asked = Study.read(file)
    folder = Path("runs") / file.stem if out is None else out
    if dry_run:
        return _tell(asked, folder)
    count, failed = 0, 0
    seeds = ", ".join(map(str, asked.content.seeds))
    say(f"{len(asked.cells)} runs: {len(asked.rows)} rows, seeds {seeds}; in {folder}")

    def ended(run: Ended) -> None:
        nonlocal count, failed
        count += 1
        name = f"[{count}/{len(asked.cells)}] {clean(run.cell.label)}, seed {run.cell.seed}"
        if run.fault is not None:
            failed += 1
            say(f"{name}: failed: {run.fault}", style="red", stderr=True)
        elif run.seconds:
            say(f"{name}: {run.seconds:.0f} s")
        else:
            say(f"{name}: was there already", style="dim")

    try:
        made = conduct(asked, folder, jobs=jobs, threads=threads, engine=engine, address=address, ended=ended)
    except Halted as halted:
        say(str(halted), style="yellow", stderr=True)
        return 128 + halted.signal
    show(made)
    say("\nwritten:", style="bold")
    for name in ("results.md", "results.tex", "results.csv", "results.json"):
        say(f"  {folder / name}")
    say(f"next: metamixer report {shlex.quote(str(folder))}")
    return FAILED if failed else 0


def show(made: Table) -> None:
    """The table on the terminal."""
    shown = table(made.header)
    for entry in made.entries:
        shown.add_row(*map(clean, made.cells(entry)))
    console().print(titled(clean(made.caption), shown))
    for note in made.notes:
        say(f"note: {clean(note)}", style="yellow")


def _tell(asked: Study, folder: Path) -> int:
    shown = table(["run", "seed", "state", "folder"], numbers=False)
    for cell in asked.cells:
        place = folder / "runs" / cell.name
        state = "done" if finished(place, asked.content.measure) else "begun" if place.is_dir() else "to do"
        shown.add_row(clean(cell.label), str(cell.seed), state, clean(place))
    console().print(shown)
    return 0
