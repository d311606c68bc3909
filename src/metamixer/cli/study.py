"""``metamixer study``: compare methods, defined in a file, in a table."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from metamixer.cli.console import console, say, table, titled
from metamixer.cli.options import AllowImports
from metamixer.core.text import clean, counted

if TYPE_CHECKING:
    from metamixer.studies import Ended, Jobs, Left, Plan, Table

FAILED = 1


def study(
    file: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml", help="File with methods, mixers, networks, data and seeds.")
    ],
    more: Annotated[list[Path] | None, typer.Argument(metavar="RESULTS.jsonl", hidden=True)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Output folder. [default: runs/STUDY]")
    ] = None,
    jobs: Annotated[
        str, typer.Option("--jobs", metavar="N|auto", help="Parallel runs, as far as memory allows; auto: all cores.")
    ] = "1",
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads per run. [default: the cores, divided among the runs]"),
    ] = None,
    engine: Annotated[
        Literal["local", "ray", "slurm", "processes"],
        typer.Option("--engine", metavar="local|ray|slurm", help="Run on this machine, or on a cluster."),
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Address of the Ray cluster. [default: this machine]")
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm", metavar="KEY=VALUE", help="Option of the SLURM jobs, such as partition=gpu or time=120."
        ),
    ] = None,
    nice: Annotated[
        int, typer.Option("--nice", metavar="N", min=0, max=19, help="Lower the priority of the runs by N.")
    ] = 0,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="FILE...", help="Copy finished runs from other results.jsonl files."),
    ] = None,
    table_only: Annotated[bool, typer.Option("--table-only", help="Write the table, run nothing.")] = False,
    allow_imports: AllowImports = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and their time, run nothing.")] = False,
) -> int:
    """Compare methods over seeds; a study that was stopped is resumed."""
    from metamixer.studies import Halted, Plan, Study, conduct

    if more and not results:
        raise typer.BadParameter(f"{more[0]}: a second file is accepted after --results only")
    others = [*(results or ()), *(more or ())]
    asked, side_by_side = Study.read(file), _jobs(jobs)
    folder = default_folder(file) if out is None else out
    if dry_run:
        return _show_plan(Plan.of(asked, folder, jobs=side_by_side, threads=threads, results=others))
    failed, count, rest, begun = 0, 0, "", False
    seeds = ", ".join(map(str, asked.content.seeds))
    say(f"{counted(len(asked.runs), 'run')}: {counted(len(asked.rows), 'row')}, seeds {seeds}; in {folder}")

    def remains(left: Left) -> None:
        nonlocal rest, begun
        if not begun:
            say(f"{count} already finished" + f"; {left.runs} to run, estimated time: {left}" * bool(left.runs))
        begun = True
        rest = f"; left: {left}" if left.runs else ""

    def ended(run: Ended) -> None:
        nonlocal count, failed
        count += 1
        name = f"[{count}/{len(asked.runs)}] {clean(run.cell.label)}, seed {run.cell.seed}"
        if run.fault is not None:
            failed += 1
            say(f"{name}: failed: {run.fault}{rest}", style="red", stderr=True)
        elif run.seconds:
            say(f"{name}: {run.seconds:.0f} s{rest}")

    try:
        made = conduct(
            asked,
            folder,
            jobs=side_by_side,
            threads=threads,
            engine=engine,
            address=address,
            slurm=_slurm(slurm or []),
            nice=nice,
            results=others,
            table_only=table_only,
            ended=ended,
            remains=remains,
        )
    except Halted as halted:
        say(str(halted), style="yellow", stderr=True)
        return 128 + halted.signal
    show(made)
    say("\nwritten:", style="bold")
    for name in ("results.jsonl", "results.md", "results.tex", "results.csv", "results.json"):
        say(f"  {folder / name}")
    say(f"next: metamixer report {shlex.quote(str(folder))}")
    return FAILED if failed else 0


def default_folder(file: Path) -> Path:
    """The default folder: ``runs/few`` for ``few.yaml`` and for ``few/study.yaml``."""
    parent = file.parent.name
    return Path("runs") / (parent if file.stem == "study" and parent not in ("", "..") else file.stem)


def _jobs(text: str) -> Jobs:
    if text == "auto":
        return "auto"
    if text.isdecimal() and len(text) < 6:
        return int(text)
    from metamixer.config.yaml_file import RecipeError

    raise RecipeError(f"--jobs {text}: accepted are numbers from 1, and auto")


def _slurm(words: list[str]) -> dict[str, str | int | bool]:
    """
    >>> _slurm(["partition=gpu", "time=120", "exclusive=true"])
    {'partition': 'gpu', 'time': 120, 'exclusive': True}
    """
    found: dict[str, str | int | bool] = {}
    for word in words:
        key, equal, value = word.partition("=")
        if not (key and equal and value):
            from metamixer.config.yaml_file import RecipeError

            raise RecipeError(f"--slurm {word}: accepted is KEY=VALUE, such as partition=gpu")
        found[key] = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value, value)
    return found


def show(made: Table) -> None:
    """Print the table in the terminal."""
    shown = table(made.header)
    for entry in made.entries:
        shown.add_row(*map(clean, made.cells(entry)))
    console().print(titled(clean(made.caption), shown))
    if made.pooled:
        header, *rows = made.pooled_rows
        shown = table(header)
        for row in rows:
            shown.add_row(*map(clean, row))
        console().print(titled(clean(made.pooled_caption), shown))
    for note in made.notes:
        say(f"note: {clean(note)}", style="yellow")


def _show_plan(plan: Plan) -> int:
    shown = table(["run", "seed", "state", "folder"], numbers=False)
    for cell in plan.study.runs:
        place = plan.run_folder(cell)
        state = "done" if plan.line(cell) else "begun" if place.is_dir() else "to do"
        shown.add_row(clean(cell.label), str(cell.seed), state, clean(place) if place.is_dir() else "–")
    console().print(shown)
    waiting = len(plan.waiting)
    say(f"to run: {waiting} of {len(plan.study.runs)}, {plan.jobs} side by side; estimated time: {plan.left({})}")
    return 0
