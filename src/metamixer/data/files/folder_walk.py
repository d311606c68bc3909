"""Walk folders: links are followed, cycles are not, and run folders are skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from metamixer.core.text import clean, listed
from metamixer.data.errors import DataError
from metamixer.data.files.image_file import SUFFIXES

FEW = 5


def is_hidden(name: str) -> bool:
    """Whether a file is hidden or was left by an operating system."""
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini", "__MACOSX")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder of this package: it has a recipe that begins with the data section."""
    try:
        with (folder / "recipe.yaml").open("rb") as file:
            return file.read(5) == b"data:"
    except OSError:
        return False


def is_image_name(path: Path) -> bool:
    """Whether a file has the suffix of an image format that can be read."""
    return path.suffix.lower() in SUFFIXES


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, sorted by name; ``DataError`` if it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            yield from sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{clean(folder)}: cannot be listed: {error.strerror}") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission
        return False


def folders(folder: Path, ignored: list[Path]) -> dict[str, Path]:
    """The visible folders in a folder by name; all other entries are added to ``ignored``."""
    found = {}
    for entry in entries(folder):
        path = Path(entry.path)
        if is_folder(entry) and not is_hidden(entry.name) and not is_run(path):
            found[entry.name] = path
        else:
            ignored.append(path)
    return found


def images(folder: Path, ignored: list[Path]) -> tuple[Path, ...]:
    """All entries with the suffix of an image, at any depth, sorted; reading reports dead links and folders."""
    seen = {_identity(path) for path in (folder.resolve(), *folder.resolve().parents)}
    found: list[Path] = []
    # A stack instead of recursion: folders can be nested deeper than the recursion limit of Python.
    walks = [entries(folder)]
    while walks:
        entry = next(walks[-1], None)
        if entry is None:
            walks.pop()
            continue
        path = Path(entry.path)
        if is_hidden(entry.name):
            ignored.append(path)
        elif is_image_name(path):
            found.append(path)
        elif not is_folder(entry) or is_run(path):
            ignored.append(path)
        elif (identity := _identity(path)) not in seen:
            seen.add(identity)
            walks.append(entries(path))
    return tuple(found)


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{clean(path)}: cannot be listed: {error.strerror}") from error
    return status.st_dev, status.st_ino


def left_out(root: Path, ignored: list[Path]) -> tuple[str, ...]:
    """A note with the number of ignored files of each kind; with their suffixes and folders if there are many."""
    kinds: dict[str, list[Path]] = {}
    for path in ignored:
        kinds.setdefault(_kind(path), []).append(path)
    if not kinds:
        return ()
    shown = (f"{len(kinds[kind])} {_ONE[kind] if len(kinds[kind]) == 1 else kind}" for kind in sorted(kinds))
    places = (_where(root, kinds[kind]) for kind in sorted(kinds))
    return (f"ignored: {', '.join(map(''.join, zip(shown, places, strict=True)))}",)


_ONE = {
    "hidden": "hidden",
    "run folders": "run folder",
    "images outside of class folders": "image outside of class folders",
    "not images": "not an image",
}


def _kind(path: Path) -> str:
    if is_hidden(path.name):
        return "hidden"
    if is_run(path):
        return "run folders"
    return "images outside of class folders" if is_image_name(path) else "not images"


def _where(root: Path, paths: list[Path]) -> str:
    if len(paths) <= FEW or is_hidden(paths[0].name):
        return ""
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in paths)
    places = Counter(clean(os.path.relpath(path.parent, root)) for path in paths)
    return f" ({_most(suffixes)}; in {_most(places)})"


def _most(counts: Counter[str]) -> str:
    return listed((f"{name} {count}" for name, count in counts.most_common()), 3)
