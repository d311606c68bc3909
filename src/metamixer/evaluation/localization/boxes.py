"""Read bounding boxes from a CSV file, in the coordinates of the prepared images.

The CSV file has the header ``file,x0,y0,x1,y1``; an image may have several lines. ``file`` is the path relative to the
folder of the class folders (``cat/1.jpg`` for ``test/cat/1.jpg``). Boxes are in pixels of the upright image, before it
is cropped or resized.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from metamixer.core.text import counted
from metamixer.data import DataError, FolderImages, ImageError, ImageSet, TensorImages, read_header

HEADER = ("file", "x0", "y0", "x1", "y1")
SHOWN = 5
_Row = tuple[int, float, float, float, float]


def files_of(images: ImageSet) -> list[Path] | None:
    """The file of every image of a set, or None if the images are not files."""
    if isinstance(images, FolderImages):
        rows = images.rows.tolist()
        if not rows or not isinstance(images.files[rows[0]], Path):
            return None
        files = [images.files[row] for row in rows]
    else:
        files = list(images.files or ()) if isinstance(images, TensorImages) else []
    paths = [file for file in files if isinstance(file, Path)]
    return paths if paths and len(paths) == len(images) else None


def place_of(file: Path, root: Path, label: str) -> Path:
    """The path of an image relative to the folder of the class folders, which is that of the split or ``root``.

    >>> place_of(Path("birds/test/wren/1.jpg"), Path("birds"), "wren").as_posix()
    'wren/1.jpg'
    """
    parts = file.relative_to(root).parts
    return Path(*parts) if parts[0] == label else Path(*parts[1:])


def read_boxes(path: Path, images: ImageSet, root: Path) -> list[Tensor]:
    """Read the boxes of every image of a split, in pixels of the images that networks see.

    Images are cropped to the largest centred part with the required aspect ratio and then resized. Boxes are cropped
    likewise, and a box that is cropped away completely is left out.

    Args:
        path: the CSV file.
        images: a split of the folder ``root``.
        root: the data folder.

    Returns:
        For every image ``(k, 4)`` float32; k = 0 if the file has no box for it, or all were cropped away. Lines for
        files that exist but are not in the split are ignored, because one CSV file can serve several splits.

    Raises:
        DataError: the file is missing or malformed; the message names the lines.
    """
    files = files_of(images)
    if files is None:
        raise DataError(f"{path}: boxes go with a folder of images, and these images are not files")
    rows = [
        place_of(file, root, images.classes[label]) for file, label in zip(files, images.labels.tolist(), strict=True)
    ]
    places = {place.as_posix(): row for row, place in enumerate(rows)}
    bases = {Path(*file.parts[: len(file.parts) - len(row.parts)]) for file, row in zip(files, rows, strict=True)}
    wrong: list[str] = []
    found: dict[int, list[list[float]]] = {}
    for name, lines in _lines(path, wrong).items():
        row = places.get(Path(name).as_posix())
        if row is None:
            if not any((base / name).is_file() for base in bases):
                wrong.append(f"line {lines[0][0]}: {name!r} is not in {', '.join(sorted(map(str, bases)))}")
            continue
        try:
            height, width = read_header(files[row]).size
        except ImageError as error:
            wrong.append(f"line {lines[0][0]}: {error}")
            continue
        for number, *box in lines:
            if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
                wrong.append(f"line {number}: the box {_plain(box)} is outside of {name!r}, {width} x {height} pixels")
            elif (seen := through_crop(box, (height, width), images.size)) is not None:
                found.setdefault(row, []).append(seen)
    if wrong:
        wrong.sort(key=lambda text: int(text.split()[1].rstrip(":")))
        more = f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise DataError("\n  ".join([f"{path}: {counted(len(wrong), 'wrong line')}", *wrong[:SHOWN]]) + more)
    return [torch.tensor(found.get(row, []), dtype=torch.float32).reshape(-1, 4) for row in range(len(files))]


def through_crop(box: Sequence[float], old: tuple[int, int], new: tuple[int, int]) -> list[float] | None:
    """A box after its image was cropped to the largest centred part and resized; None: cropped away.

    Args:
        box: x0, y0, x1, y1 in the original image.
        old: height and width of the original image.
        new: height and width of the resized image.

    >>> through_crop((50, 0, 150, 100), (100, 200), (10, 10))
    [0.0, 0.0, 10.0, 10.0]
    """
    scale = min(old[0] / new[0], old[1] / new[1])
    top, left = (old[0] - new[0] * scale) / 2, (old[1] - new[1] * scale) / 2
    x0, x1 = (min(max((x - left) / scale, 0.0), float(new[1])) for x in (box[0], box[2]))
    y0, y1 = (min(max((y - top) / scale, 0.0), float(new[0])) for y in (box[1], box[3]))
    return [x0, y0, x1, y1] if x1 > x0 and y1 > y0 else None


def _lines(path: Path, wrong: list[str]) -> Mapping[str, list[_Row]]:
    """The boxes of every file, with their line numbers."""
    found: dict[str, list[_Row]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = tuple(cell.strip() for cell in next(reader, []))
            if header != HEADER:
                raise DataError(f"{path}: the first line is {','.join(header)!r}; expected {','.join(HEADER)!r}")
            for cells in reader:
                if not cells:
                    continue
                number = reader.line_num
                if len(cells) != len(HEADER):
                    wrong.append(f"line {number}: {len(cells)} cells; expected {len(HEADER)}: {','.join(HEADER)}")
                    continue
                try:
                    x0, y0, x1, y1 = map(float, cells[1:])
                except ValueError:
                    wrong.append(f"line {number}: {','.join(cells[1:])!r} are not four numbers")
                    continue
                if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
                    wrong.append(f"line {number}: {_plain((x0, y0, x1, y1))} is not a box; expected x0 < x1, y0 < y1")
                    continue
                found.setdefault(cells[0].strip(), []).append((number, x0, y0, x1, y1))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: no CSV in UTF-8: {error}") from error
    return found


def _plain(box: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in box)
