"""Check every file of an image folder before training."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from metamixer.core.machine import cores
from metamixer.core.progress import watched
from metamixer.core.text import clean
from metamixer.data.errors import DataError, ImageError
from metamixer.data.files.duplicates import Copy, Fingerprint, copies, fingerprint
from metamixer.data.files.folder_scan import FolderLayout, scan
from metamixer.data.files.image_file import read_header, read_image
from metamixer.data.files.load_files import sixteen_bits

TINY = 16


@dataclass(frozen=True)
class FileCheck:
    """One file: its split (``all`` in a folder without splits), its class, and whether it can be read.

    ``code`` is ``ok`` or that of :class:`~metamixer.data.ImageError`, ``cause`` is the reason in words, and ``shape``
    is ``(C, H, W)``, or None if the file cannot be read. ``blank``: nearly all pixels have one colour. ``sixteen``: the
    image has 16 bits. ``fingerprint``: to find copies.
    """

    path: Path
    split: str
    label: str
    code: str
    cause: str
    shape: tuple[int, ...] | None
    blank: bool = False
    sixteen: bool = False
    fingerprint: Fingerprint | None = None

    @property
    def tiny(self) -> bool:
        """Whether a side has fewer than :data:`TINY` pixels."""
        return self.shape is not None and min(self.shape[1:]) < TINY


@dataclass(frozen=True, eq=False)
class FolderCheck:
    """The result of :func:`check`.

    Args:
        classes: the names of the class folders, sorted.
        files: all files with the suffix of an image, in order.
        ignored: hidden files and folders, and files with other suffixes.
        notes: unusual findings that are not errors.
    """

    classes: tuple[str, ...]
    files: tuple[FileCheck, ...]
    ignored: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def bad(self) -> tuple[FileCheck, ...]:
        """The files that cannot be read."""
        return tuple(file for file in self.files if file.code != "ok")

    @cached_property
    def copies(self) -> tuple[Copy, ...]:
        """Images that are copies of others, by their indices in ``files``; training images count as the first ones."""
        order = sorted(range(len(self.files)), key=lambda number: self.files[number].split not in ("train", "all"))
        found = copies([self.files[number].fingerprint for number in order])
        return tuple(Copy(order[one.first], order[one.second], one.kind) for one in found)

    def where(self, copy: Copy) -> str:
        """``across splits``, ``across classes`` or ``inside a class``."""
        first, second = self.files[copy.first], self.files[copy.second]
        if first.split != second.split:
            return "across splits"
        return "across classes" if first.label != second.label else "inside a class"

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """The number of readable images by split and class."""
        return dict(Counter((file.split, file.label) for file in self.files if file.code == "ok"))


def check(folder: str | Path, layout: FolderLayout = "auto") -> FolderCheck:
    """Decode every image of a folder completely, and report on each.

    Args:
        folder: a folder of images.
        layout: ``auto`` recognises splits by their names; ``classes`` treats each folder as a class.

    Raises:
        DataError: the folder does not exist, or its classes cannot be determined.
    """
    if str(folder).startswith(("hf:", "wds:")):
        raise DataError(
            f"{clean(folder)}: expected a folder of images; data.on_error=skip looks at all images of other sets"
        )
    found = scan(Path(folder), layout)

    def look(item: tuple[str, Path, int]) -> FileCheck:
        part, path, label = item
        name = found.classes[label]
        try:
            pixels = read_image(path)
            mark = fingerprint(pixels)
            deep = read_header(path).sixteen
            return FileCheck(path, part, name, "ok", "", pixels.shape, mark.look is None, deep, mark)
        except ImageError as error:
            return FileCheck(path, part, name, error.code, str(error).removeprefix(f"{clean(path)}: "), None)

    items = [(part, path, label) for part, pair in found.parts.items() for path, label in zip(*pair, strict=True)]
    with ThreadPoolExecutor(min(16, cores())) as pool:
        files = tuple(watched(pool.map(look, items), "decoding images", len(items)))
    notes = sixteen_bits([(clean(file.path), file.path) for file in files if file.sixteen])
    return FolderCheck(found.classes, files, found.ignored, (*found.notes, *notes))
