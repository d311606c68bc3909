"""Labels from CSV files, in addition to class folders or instead of them."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from metamixer.core.text import clean, counted, quoted
from metamixer.data.errors import DataError
from metamixer.data.files.folder_scan import FolderLayout, Layout, scan
from metamixer.data.files.split_names import ALIASES, split_named


@dataclass(frozen=True)
class LabelFiles:
    """CSV files with labels.

    Args:
        files: paths relative to the data folder. A file with the name of a split, such as ``test.csv``, is that split.
        column: the column with the class names.
    """

    files: tuple[str, ...]
    column: str = "label"


class Label(NamedTuple):
    """A row: the name of a class, and the split, or None if it is not given."""

    name: str
    split: str | None


def scan_labelled(root: Path, layout: FolderLayout, labels: LabelFiles) -> Layout:
    """A folder of images with labels from files.

    In a folder of classes, images with a row get the label of that row, and other images that of their folder; all
    training images need a row. In any other folder the images are those of the rows, and the classes are the sorted
    labels. A column ``split`` gives the split of an image.

    Raises:
        DataError: a file or a column is missing; an image has two rows, does not exist, or has no row; a class or a
            split does not exist.
    """
    if not root.is_dir():
        return scan(root)  # raises the error
    rows = _rows(root, labels)
    where = " and ".join(clean(file) for file in labels.files)
    try:
        found = scan(root, layout)
    except DataError:
        return _of_rows(root, rows, where)
    return _relabelled(root, found, rows, where)


def _rows(root: Path, labels: LabelFiles) -> dict[str, Label]:
    rows: dict[str, Label] = {}
    for name in labels.files:
        whole = split_named(Path(name).stem) if len(labels.files) > 1 else None
        for number, row in _read(root / name, labels.column):
            place = f"{clean(root / name)}, line {number}"
            file, split = os.path.normpath(row["file"] or ""), whole
            if not row["file"] or os.path.isabs(file) or file.startswith(".."):
                raise DataError(f"{place}: file {row['file']!r}; a path inside of {clean(root)} is accepted")
            if not row[labels.column]:
                raise DataError(f"{place}: {clean(file)} has no {labels.column}")
            if row.get("split"):
                split = split_named(row["split"])
                if split is None:
                    known = ", ".join(name for names in ALIASES.values() for name in names)
                    raise DataError(f"{place}: split {row['split']!r}; {known} are accepted")
            if _form(file) in rows:
                raise DataError(f"{place}: {clean(file)} is named twice")
            rows[_form(file)] = Label(row[labels.column], split)
    if not rows:
        raise DataError(
            f"{clean(root / labels.files[0])}: no rows; file and {labels.column} of each image are expected"
        )
    return rows


def _read(path: Path, column: str) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise DataError(f"{clean(path)}: no such file; data.labels is a path in the data folder") from error
    except OSError as error:
        raise DataError(f"{clean(path)}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{clean(path)}: not a CSV file in UTF-8: {error}") from error
    for needed, option in (("file", ""), (column, " or another one by data.labels_column")):
        if needed not in (reader.fieldnames or ()):
            there = quoted(reader.fieldnames or ())
            raise DataError(f"{clean(path)}: its columns are {there or 'none'}; {needed!r} is expected{option}")
    return rows


def _of_rows(root: Path, rows: Mapping[str, Label], where: str) -> Layout:
    classes = tuple(sorted({label.name for label in rows.values()}))
    if len(classes) < 2:
        raise DataError(f"{where}: one class, {classes[0]!r}, is nothing to learn; two or more are expected")
    given = {label.split for label in rows.values()}
    if None in given and len(given) > 1:
        missing = next(file for file, label in rows.items() if label.split is None)
        raise DataError(f"{where}: {clean(missing)} has no split, others have")
    if "train" not in given and None not in given:
        raise DataError(f"{where}: no image is of the split 'train'")
    paths = {file: root / file for file in rows}
    _all_there(paths, where)
    return _layout(classes, {file: (paths[file], label) for file, label in rows.items()}, ())


def _relabelled(root: Path, found: Layout, rows: Mapping[str, Label], where: str) -> Layout:
    there = {
        _form(os.path.relpath(path, root)): (path, Label(found.classes[label], part))
        for part, (files, labels) in found.parts.items()
        for path, label in zip(files, labels, strict=True)
    }
    _all_there({file: there[file][0] if file in there else root / file for file in rows}, where)
    if extra := sorted({label.name for label in rows.values()} - set(found.classes)):
        raise DataError(f"{where}: the classes {quoted(extra)} do not exist; there are {quoted(found.classes)}")
    main = "train" if "train" in found.parts else "all"
    given = {file: label for file, label in rows.items() if file in there}
    if absent := [file for file, (_, label) in there.items() if label.split == main and file not in given]:
        raise DataError(f"{where}: {counted(len(absent), 'training image')} without a row, such as {quoted(absent, 3)}")
    changed = 0
    for file, label in given.items():
        path, before = there[file]
        changed += label.name != before.name
        there[file] = path, Label(label.name, label.split or before.split)
    note = f"labels of {counted(len(given), 'image')} are those of {where}; {changed} differ from their folders"
    return _layout(found.classes, there, (*found.notes, note), found.ignored)


def _layout(
    classes: tuple[str, ...],
    items: Mapping[str, tuple[Path, Label]],
    notes: tuple[str, ...],
    ignored: Sequence[Path] = (),
) -> Layout:
    number = {name: index for index, name in enumerate(classes)}
    parts: dict[str, tuple[tuple[Path, ...], tuple[int, ...]]] = {}
    for part in dict.fromkeys(label.split or "all" for _, label in items.values()):
        own = [(path, number[label.name]) for path, label in items.values() if (label.split or "all") == part]
        parts[part] = tuple(path for path, _ in own), tuple(label for _, label in own)
    return Layout(classes, parts, tuple(ignored), notes)


def _all_there(paths: Mapping[str, Path], where: str) -> None:
    if gone := [file for file, path in paths.items() if not path.is_file()]:
        raise DataError(f"{where}: {counted(len(gone), 'file')} not found, such as {quoted(gone, 3)}")


def _form(file: str) -> str:
    return unicodedata.normalize("NFC", Path(file).as_posix())
