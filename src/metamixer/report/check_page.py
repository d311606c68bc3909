"""``metamixer check --html``: a page about a folder of images, with the pictures that should be inspected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metamixer.config.yaml_file import RecipeError
from metamixer.core.files import write_whole
from metamixer.core.text import clean
from metamixer.data.class_sampling import REMEDY, imbalance
from metamixer.data.errors import ImageError
from metamixer.data.files.folder_check import TINY, FileCheck, FolderCheck
from metamixer.data.files.image_file import read_image
from metamixer.report.map_gallery import data_uri
from metamixer.report.page import rendered

SIDE = 112
MOST = 40
"""The largest number of pictures, or pairs of pictures, of each kind."""


def check_place(folder: Path, out: Path) -> None:
    """Raise RecipeError unless ``out`` is the name of an HTML file outside of the image folder."""
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise RecipeError(f"--html {out}: a name that ends in .html is accepted")
    if out.resolve().is_relative_to(folder.resolve()):
        raise RecipeError(f"--html {out} is inside of the data, {clean(folder)}; a place outside is accepted")


def write_check(found: FolderCheck, folder: Path, out: Path) -> None:
    """Write the page about a folder to a path accepted by :func:`check_place`; ``OSError`` if it cannot be written."""
    check_place(folder, out)
    text = rendered("check.html.j2", **_view(found, folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text, newline="\n")


def _view(found: FolderCheck, folder: Path) -> dict[str, Any]:
    there = {file.split for file in found.files}
    splits = [split for split in ("train", "val", "test", "all") if split in there]
    train = [found.counts.get(("train", name), 0) + found.counts.get(("all", name), 0) for name in found.classes]
    kinds = _kinds(found)
    shapes = [file.shape for file in found.files if file.shape is not None]
    return {
        "title": f"Images of {folder.resolve().name}",
        "tiles": [
            ("images", len(found.files) - len(found.bad)),
            ("classes", len(found.classes)),
            ("cannot be read", len(found.bad)),
            *((title, len(pairs)) for title, _, pairs in kinds),
        ],
        "notes": [*found.notes, *([f"{said}; {REMEDY}"] if (said := imbalance(found.classes, train)) else [])],
        "splits": splits,
        "classes": [(name, [found.counts.get((split, name), 0) for split in splits]) for name in found.classes],
        "most": max((count for count in found.counts.values()), default=1),
        "sizes": _sizes(shapes),
        "shapes": ", ".join(f"{count:,} of {_size(shape)}" for shape, count in Counter(shapes).most_common(3)),
        "groups": [
            {"title": title, "why": why, "rows": [_shown(files, folder) for files in pairs[:MOST]],
             "more": max(0, len(pairs) - MOST)}
            for title, why, pairs in kinds if pairs
        ],
        "bad": [(_place(file, folder), file.cause) for file in found.bad],
    }  # fmt: skip


def _kinds(found: FolderCheck) -> list[tuple[str, str, list[tuple[FileCheck, ...]]]]:
    """Title, explanation and files of each kind of finding; copies as pairs."""
    pairs = [(found.where(copy), copy.kind, found.files[copy.first], found.files[copy.second]) for copy in found.copies]

    def copied(fits: Callable[[str, FileCheck, FileCheck], bool]) -> list[tuple[FileCheck, ...]]:
        chosen = [(kind, one, other) for where, kind, one, other in pairs if fits(where, one, other)]
        return [(one, other) for _, one, other in sorted(chosen, key=lambda pair: pair[0])]

    def leaks(where: str, one: FileCheck, other: FileCheck) -> bool:
        return one.split == "train" != other.split

    return [
        ("leaks", "Images of another split that are copies of training images: metrics on them are meaningless.",
         copied(leaks)),
        ("copies across splits", "Neither of them is a training image.",
         copied(lambda where, one, other: where == "across splits" and not leaks(where, one, other))),
        ("copies across classes", "One of the two labels is wrong, or both are right of one image.",
         copied(lambda where, *_: where == "across classes")),
        ("copies inside a class", "They count twice.", copied(lambda where, *_: where == "inside a class")),
        ("blank", "Nearly one colour.", [(file,) for file in found.files if file.blank]),
        ("tiny", f"A side has fewer than {TINY} pixels.", [(file,) for file in found.files if file.tiny]),
    ]  # fmt: skip


def _sizes(shapes: Sequence[tuple[int, ...]]) -> list[tuple[str, str, str, str]]:
    rows: list[tuple[str, str, str, str]] = []
    for axis, name in enumerate(("channels", "height", "width")):
        values = sorted(shape[axis] for shape in shapes)
        if values:
            low, middle, high = (f"{values[at]:,}" for at in (0, len(values) // 2, -1))
            rows.append((name, low, middle, high))
    return rows


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _shown(files: Iterable[FileCheck], folder: Path) -> list[dict[str, Any]]:
    return [
        {"place": _place(file, folder), "split": file.split, "label": file.label, "picture": picture(file.path),
         "size": _size(file.shape[1:]) if file.shape else ""}
        for file in files
    ]  # fmt: skip


def _place(file: FileCheck, folder: Path) -> str:
    return clean(file.path.relative_to(folder) if file.path.is_relative_to(folder) else file.path)


def picture(path: Path) -> str | None:
    """A thumbnail of a file as a data URI; None if the file can no longer be read."""
    try:
        planes = read_image(path, size=(SIDE, SIDE), fit="letterbox")
    except ImageError:
        return None
    planes = planes[:3] if len(planes) > 2 else np.repeat(planes[:1], 3, axis=0)
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(file, "PNG", optimize=True)
    return data_uri(file.getvalue())
