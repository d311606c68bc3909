"""Predict classes and probabilities of image files, and write them as CSV, JSON or a table."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metamixer.cli.console import console, say, table
from metamixer.core.files import write_whole
from metamixer.core.machine import cores
from metamixer.core.text import clean, counted, spreadsheet_cell
from metamixer.data import DataError, ImageError
from metamixer.data.files.image_file import SUFFIXES
from metamixer.export.onnx_file import OnnxClassifier
from metamixer.runs.classifier import Classifier

_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """A file, and its classes with probabilities, the largest first; empty if the file could not be read."""

    file: str
    ranking: tuple[tuple[str, float], ...] = ()
    error: str = ""


def collect(paths: Iterable[str]) -> list[Path]:
    """The image files, each once: given files, all images in folders, and matches of globs.

    Raises:
        DataError: a folder has no image, or a glob matches nothing.
    """
    files: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = list(_images(path))
            if not inside:
                raise DataError(f"{path}: no image in it; files that end in {' '.join(sorted(SUFFIXES))} count")
            files |= dict.fromkeys(inside)
        elif glob.has_magic(given) and not os.path.lexists(path):
            fitting = [Path(name) for name in sorted(glob.glob(given, recursive=True))]
            fitting = [one for one in fitting if not one.is_dir()]
            if not fitting:
                raise DataError(f"{given}: no file matches")
            files |= dict.fromkeys(fitting)
        else:
            files[path] = None  # reading reports missing files
    return list(files)


def _images(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(place, name)


def predictions(
    classifier: Classifier | OnnxClassifier, files: Sequence[Path], failed: list[ImageError], on_error: str, device: str
) -> Iterator[Prediction]:
    """Yield the predictions of files in order; errors of unreadable files are added to ``failed``, or raised."""
    if isinstance(classifier, OnnxClassifier):
        device = "cpu"  # the device of the ONNX Runtime session
    else:
        classifier.network.to(device)

    def read(path: Path) -> Tensor | ImageError:
        try:
            return classifier.read(path)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(min(16, cores())) as pool:
        for start in range(0, len(files), _BATCH):
            some = files[start : start + _BATCH]
            images, predictions = [], {}
            for path, image in zip(some, pool.map(read, some), strict=True):
                if isinstance(image, ImageError):
                    if on_error == "stop":
                        raise image
                    failed.append(image)
                    predictions[path] = Prediction(str(path), error=str(image))
                else:
                    images.append((path, image))
            if images:
                probabilities = classifier.probabilities(torch.stack([image for _, image in images]).to(device)).cpu()
                for (path, _), row in zip(images, probabilities, strict=True):
                    order = row.argsort(descending=True, stable=True).tolist()
                    ranking = tuple((classifier.classes[c], float(row[c])) for c in order)
                    predictions[path] = Prediction(str(path), ranking)
            yield from (predictions[path] for path in some)


def write(found: Sequence[Prediction], classes: Sequence[str], out: Path | None, top: int | None) -> None:
    """Write the predictions to a file; without a file, print a table in a terminal and CSV elsewhere."""
    if out is None:
        if sys.stdout.isatty():
            _print(found, top or min(3, len(classes)))
        else:
            sys.stdout.write(as_csv(found, classes, top))
        return
    text = as_csv(found, classes, top) if out.suffix.lower() == ".csv" else as_json(found, top)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text, newline="", errors="surrogateescape")
    say(f"predictions for {counted(sum(not one.error for one in found), 'file')} written to {out}")


def _print(found: Sequence[Prediction], top: int) -> None:
    made = table(["file", *(f"class {k}" if top > 1 else "class" for k in range(1, top + 1))], numbers=False)
    for one in found:
        if not one.error:  # errors are printed on stderr
            made.add_row(clean(one.file), *(f"{clean(name)} {share:.3f}" for name, share in one.ranking[:top]))
    console().print(made)


def as_csv(found: Sequence[Prediction], classes: Sequence[str], top: int | None) -> str:
    """CSV with file, class and probability; then the other top classes, or without ``top`` a column for each class.

    The row of a file that could not be read is empty except for its name.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if top is None:
        writer.writerow(["file", "class", "probability", *map(spreadsheet_cell, classes)])
    else:
        more = (f"{what}_{k}" for k in range(2, top + 1) for what in ("class", "probability"))
        writer.writerow(["file", "class", "probability", *more])
    columns = 3 + (len(classes) if top is None else 2 * (top - 1))
    for one in found:
        if one.error:
            writer.writerow([spreadsheet_cell(one.file), *[""] * (columns - 1)])
            continue
        name, share = one.ranking[0]
        row = [spreadsheet_cell(one.file), spreadsheet_cell(name), f"{share:.6f}"]
        if top is None:
            by_class = dict(one.ranking)
            row += [f"{by_class[name]:.6f}" for name in classes]
        else:
            row += [cell for name, share in one.ranking[1:top] for cell in (spreadsheet_cell(name), f"{share:.6f}")]
        writer.writerow(row)
    return text.getvalue()


def as_json(found: Sequence[Prediction], top: int | None) -> str:
    """JSON list with an object for each file: file, class, probability, and probabilities of all or the top classes.

    For a file that could not be read, it has the file, ``error``, and null as the class.
    """
    rows: list[dict[str, Any]] = [
        {
            "file": one.file,
            "class": one.ranking[0][0],
            "probability": round(one.ranking[0][1], 6),
            "probabilities": {name: round(share, 6) for name, share in one.ranking[:top]},
        }
        if not one.error
        else {"file": one.file, "class": None, "error": one.error}
        for one in found
    ]
    return json.dumps(rows, indent=1, ensure_ascii=True) + "\n"
