"""``metamixer predict``: predict classes and probabilities of image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from metamixer.cli.console import say
from metamixer.cli.options import AllowImports, Device, resolved

if TYPE_CHECKING:
    from metamixer.data import ImageError


def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_OR_RUN", help="A run's folder, or a .safetensors or .onnx file.")
    ],
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Image files, folders, quoted globs.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.csv|FILE.json", help="Write the predictions to a file.")
    ] = None,
    top: Annotated[int | None, typer.Option("--top", help="Number of top classes to show. [default: all]")] = None,
    allow_imports: AllowImports = False,
    on_error: Annotated[
        Literal["skip", "stop"], typer.Option("--on-error", help="What to do with unreadable files.")
    ] = "skip",
    device: Device = "auto",
) -> int:
    """Classify images."""
    from metamixer.cli.exit_codes import DATA
    from metamixer.cli.predictions import collect, predictions, write
    from metamixer.config.yaml_file import RecipeError
    from metamixer.core.progress import watched
    from metamixer.core.text import counted
    from metamixer.export.load_model import load

    if out is not None and out.suffix.lower() not in (".csv", ".json"):
        raise RecipeError(f"--out {out}: accepted are .csv and .json")
    classifier = load(model).classifier
    if top is not None and not 1 <= top <= len(classifier.classes):
        raise RecipeError(f"--top {top}: the network knows {len(classifier.classes)} classes, so 1 to that many")
    files = collect(paths)
    failed: list[ImageError] = []
    answers = predictions(classifier, files, failed, on_error, resolved(device))
    found = list(watched(answers, "classifying", len(files)))
    for error in failed[:20]:
        say(f"not read: {error}", style="yellow", stderr=True)
    if failed:
        more = f", {len(failed) - 20} of them not listed" if len(failed) > 20 else ""
        say(f"{len(failed)} of {counted(len(files), 'file')} could not be read{more}", style="yellow", stderr=True)
    if len(failed) == len(files):
        return DATA
    write(found, classifier.classes, out, top)
    return 0
