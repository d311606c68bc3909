"""Progress bars on stderr for long operations; occasional lines in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from metamixer.cli.console import console
from metamixer.cli.waiting import Waiting
from metamixer.core.progress import watched_by
from metamixer.evaluation.robustness.robustness import Progress


@contextmanager
def bars(first: str) -> Iterator[Progress]:
    """Yield progress(stage, done, total), which shows a bar for each stage; until the first call, ``first`` is shown.

    If stderr is not a terminal, lines are printed instead.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    target = console(stderr=True)
    if not target.is_terminal:
        waiting = Waiting()
        with watched_by(waiting):
            yield waiting
        return
    columns = (TextColumn("{task.description}"), BarColumn(28), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, TimeRemainingColumn(), console=target, transient=True) as shown:
        begun = shown.add_task(first, total=None)

        def progress(stage: str, done: int, total: int) -> None:
            shown.update(begun, visible=False)
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done, total=total)

        with watched_by(progress):
            yield progress
