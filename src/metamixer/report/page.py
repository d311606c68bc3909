"""The self-contained HTML page of a report."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.files import write_whole
from metamixer.core.text import clean
from metamixer.data import DataError
from metamixer.evaluation.localization.map_gallery import Shown
from metamixer.models.factory import UnknownModel
from metamixer.report.forest_plot import forests
from metamixer.report.map_gallery import data_uri
from metamixer.report.read_runs import RunFiles, StudyFiles, read_all, short
from metamixer.report.view import of_run, of_runs
from metamixer.runs.data_record import section_of

Preview = Callable[[Recipe, Path], object]
"""Draws mixed images of a recipe to a PNG file: ``metamixer.runs.mixing_preview.draw``."""

Gallery = Callable[[Path], Sequence[Shown]]
"""Returns images of a run with predictions and activation maps of its networks."""

_HERE = Path(__file__).parent


def report(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    title: str = "",
    preview: Preview | None = None,
    gallery: Gallery | None = None,
) -> Path:
    """Write a report of runs and studies as one HTML page that works offline.

    Args:
        paths: folders of runs and studies; several runs are compared first.
        out: the HTML file.
        title: title of the page.
        preview: draws the mixing preview of a run; None: no preview.
        gallery: computes predictions and activation maps of a run; None: no gallery.

    Returns:
        ``out``.

    Raises:
        RecipeError: a folder is neither a run nor a study, its recipe is damaged, or ``out`` is not an HTML file.
        OSError: the page cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise RecipeError(f"{out}: the report is a page; expected a name that ends in .html")
    if out.is_dir():
        raise RecipeError(f"{out} is a folder; expected the name of a file")
    runs, studies = read_all([paths] if isinstance(paths, str | Path) else paths)
    views = [_with_pictures(run, of_run(run), preview, gallery) for run in runs]
    text = render(views, of_runs(runs) if len(runs) > 1 else None, studies, title or _title(runs, studies))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text, newline="\n")
    return out


def render(
    runs: Sequence[dict[str, Any]], several: dict[str, Any] | None, studies: Sequence[StudyFiles], title: str
) -> str:
    """Render the page. The template escapes all values, and control characters are made visible."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    return rendered(
        "page.html.j2",
        title=title,
        runs=runs,
        several=several,
        studies=[_of_study(study) for study in studies],
        # A file of this package rather than a value: it is not escaped, and the only script that the policy allows.
        script=_unescaped(script),
        script_hash=_hash(script),
    )


def rendered(template: str, **values: Any) -> str:
    """Render a template of this package with its style; values are escaped, and control characters made visible."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # The one place where control characters and lone surrogates, which files cannot hold, are made visible.
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        version=_version(), style=_unescaped(style), style_hash=_hash(style), **values
    )


def _unescaped(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # noqa: S704


def _of_study(study: StudyFiles) -> dict[str, Any]:
    notes = list(study.notes)
    try:
        plots = forests(study.results)
    except ValueError as error:
        plots, notes = [], [*notes, f"results.json: {error}"]
    return {
        "name": study.name,
        "yaml": study.yaml,
        "table": study.table,
        "pooled": study.pooled,
        "forests": plots,
        "notes": notes,
    }


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _version() -> str:
    try:
        return version("metamixer")
    except PackageNotFoundError:
        return ""


def _title(runs: Sequence[RunFiles], studies: Sequence[StudyFiles]) -> str:
    names = [*(run.name for run in runs), *(study.name for study in studies)]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _with_pictures(
    run: RunFiles, view: dict[str, Any], preview: Preview | None, gallery: Gallery | None
) -> dict[str, Any]:
    """Add the pictures, which need the data or weights of the run; add a note if these are missing."""
    from metamixer.report.map_gallery import gallery as drawn

    notes = list(view["notes"])
    view = {**view, "preview": None, "gallery": [], "gallery_boxes": {}}
    faults = (RecipeError, DataError, UnknownModel, OSError, ValueError, RuntimeError, ImportError)
    if preview is not None:
        try:
            view["preview"] = _preview(run, preview)
        except faults as error:
            notes.append(f"No mixing preview: {short(error)}")
    if gallery is not None:
        try:
            rows = drawn(gallery(run.folder))
            boxes = {
                "truth": any(row["truth"] for row in rows),
                "found": any(c["box"] for r in rows for c in r["cells"]),
            }
            view |= {"gallery": rows, "gallery_boxes": boxes}
        except faults as error:
            notes.append(f"No activation maps: {short(error)}")
    return {**view, "notes": notes}


def _preview(run: RunFiles, draw: Preview) -> str:
    recipe = Recipe.read(run.folder / "recipe.yaml")
    # A report downloads nothing.
    section = section_of(recipe, run.folder).model_copy(update={"download": False})
    recipe = recipe.model_copy(update={"data": section})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "preview.png"
        draw(recipe, path)
        return data_uri(path.read_bytes())
