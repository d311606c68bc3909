"""``metamixer report``: runs and studies as one page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from metamixer.cli.console import say
from metamixer.cli.exit_codes import told
from metamixer.cli.progress_bars import bars
from metamixer.config.recipe import Recipe
from metamixer.report import plots
from metamixer.report import report as write
from metamixer.runs.data_record import section_of
from metamixer.runs.localize_run import show_run
from metamixer.runs.mixing_preview import draw
from metamixer.runs.run import check_outside_of_data, read_recipe


@told
def report(paths: Sequence[Path], out: Path, static: Path | None, title: str, pictures: bool, data: str | None) -> int:
    """Write the page, and the plots if they are asked for."""
    for path in paths:
        if static is not None and (path / "recipe.yaml").is_file():
            check_outside_of_data(read_recipe(path), static)

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
        say(f"written: {len(written)} plots in {static}" if written else f"no plots: nothing in {static}")
    return 0
