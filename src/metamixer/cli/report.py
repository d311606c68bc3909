"""``metamixer report``: write runs and studies as one HTML page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metamixer.cli.console import say
from metamixer.cli.options import AllowImports, DataAt
from metamixer.core.text import counted

if TYPE_CHECKING:
    from metamixer.config.recipe import Recipe


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|STUDY...", help="Folders of runs or studies; several runs are compared."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="Output file.")] = Path("report.html"),
    static: Annotated[
        Path | None,
        typer.Option("--static", metavar="FOLDER", help="Also write the plots to this folder, as PNG and SVG."),
    ] = None,
    title: Annotated[str, typer.Option("--title", help="Title of the page. [default: the name of the run]")] = "",
    allow_imports: AllowImports = False,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Show images of the data.")] = True,
    data: DataAt = None,
) -> int:
    """Write an HTML report of runs and studies; it works offline."""
    from metamixer.cli.progress_bars import bars
    from metamixer.report import plots
    from metamixer.report import report as write
    from metamixer.runs.data_record import section_of
    from metamixer.runs.localize_run import show_run
    from metamixer.runs.mixing_preview import draw
    from metamixer.runs.run import check_outside_of_data, read_recipe

    for path in paths:
        if static is not None and (path / "recipe.yaml").is_file():
            check_outside_of_data(section_of(read_recipe(path), path, data), static)

    def drawn(recipe: Recipe, picture: Path) -> list[str]:
        section = recipe.data if data is None else section_of(recipe, picture.parent, data)
        return draw(recipe.model_copy(update={"data": section}), picture, images=6)

    preview, gallery = (drawn, partial(show_run, count=8, at=data)) if pictures else (None, None)
    with bars("writing the page, its mixing preview and activation maps" if pictures else "writing the page"):
        page = write(paths, out, title=title, preview=preview, gallery=gallery)
    say(f"written: {page}")
    if static is not None:
        with bars("drawing plots"):
            written = plots(paths, static)
        say(f"written: {counted(len(written), 'plot')} in {static}" if written else f"no plots: nothing in {static}")
    return 0
