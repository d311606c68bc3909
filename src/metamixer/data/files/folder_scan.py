"""Folders of images: which files are the data, and what class each is of."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from metamixer.core.text import clean
from metamixer.data.errors import DataError
from metamixer.data.files.image_file import SUFFIXES

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folder names that are splits, and which."""


@dataclass(frozen=True)
class Layout:
    """The files of a folder of images.

    Args:
        classes: the names of the class folders, sorted.
        parts: for ``train``, ``val``, ``test``, or ``all`` where the folder has no splits, the files and
        their labels.
        ignored: hidden files and folders, and files that are no images.
        notes: what is odd but no error, in sentences.
    """

    classes: tuple[str, ...]
    parts: Mapping[str, tuple[tuple[Path, ...], tuple[int, ...]]]
    ignored: tuple[Path, ...]
    notes: tuple[str, ...]


def scan(root: Path) -> Layout:
    """Look through a folder of images.

    Either ``root/train/CLASS/…`` with ``root/val`` (or ``valid``, ``validation``) and ``root/test`` beside
    it, each optional, or ``root/CLASS/…``. The first reading holds if ``train`` has folders in it, or if all
    folders have names of splits. Within a class images are found at any depth, through links too, but not in
    circles.

    Raises:
        DataError: if the folder is missing or has no class folders, if there is one class only, a class
            without an image, or a class in ``val`` or ``test`` that is not in ``train``.
    """
    if not root.is_dir():
        raise DataError(f"{clean(root)}: {'not a folder' if root.exists() else 'no such folder'}")
    ignored: list[Path] = []
    top = _folders(root, ignored)
    if not set(top) <= set(SPLITS) and not ("train" in top and _folders(top["train"], [])):
        return _layout(root, {"all": root}, ignored, ())
    parts: dict[str, Path] = {}
    for name in top:
        if name not in SPLITS:
            ignored.append(top[name])
        elif SPLITS[name] in parts:
            raise DataError(f"{clean(root)}: {parts[SPLITS[name]].name!r} and {name!r} are both the validation split")
        else:
            parts[SPLITS[name]] = top[name]
    if top and "train" not in parts:
        raise DataError(f"{clean(root)}: has {', '.join(map(repr, top))} but no 'train' folder to learn from")
    notes = tuple(
        f"{clean(path)} is beside 'train' and was ignored" for name, path in top.items() if name not in SPLITS
    )
    return _layout(root, parts or {"all": root}, ignored, notes)


def _layout(root: Path, parts: dict[str, Path], ignored: list[Path], notes: tuple[str, ...]) -> Layout:
    main = "train" if "train" in parts else "all"
    ignored = [] if main == "all" else ignored
    found = {
        part: {name: _images(path, ignored) for name, path in _folders(folder, ignored).items()}
        for part, folder in parts.items()
    }
    classes = tuple(sorted(found[main]))
    if not classes:
        raise DataError(
            f"{clean(parts[main])}: no class folders; it holds {_held(parts[main])}. One folder for each class would "
            f"work: {clean(parts[main].name)}/cat/1.jpg, {clean(parts[main].name)}/dog/2.jpg"
        )
    if len(classes) == 1:
        raise DataError(f"{clean(parts[main])}: one class, {classes[0]!r}, is nothing to learn; two or more would work")
    if empty := [name for name in classes if not found[main][name]]:
        raise DataError(
            f"{clean(parts[main])}: no image in {listed(empty)}; files that end in {' '.join(sorted(SUFFIXES))} count"
        )
    for part, members in found.items():
        if extra := sorted(set(members) - set(classes)):
            raise DataError(
                f"{clean(parts[part])}: has {listed(extra)}, not among the classes of {clean(parts[main])}: "
                f"{listed(classes)}"
            )
        if absent := [name for name in classes if not members.get(name)]:
            notes += (f"{part} has no image of {listed(absent)}",)
    files = {
        part: (
            tuple(path for name in classes for path in members.get(name, ())),
            tuple(label for label, name in enumerate(classes) for _ in members.get(name, ())),
        )
        for part, members in found.items()
    }
    files = {part: content for part, content in files.items() if content[0]}
    if ignored:
        kinds = Counter("hidden" if _hidden(path.name) else "not images" for path in ignored)
        notes += (f"ignored: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}",)
    return Layout(classes, files, tuple(ignored), notes)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini", "__MACOSX")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{clean(folder)}: cannot be listed: {error.strerror}") from error
    yield from found


def _folders(folder: Path, ignored: list[Path]) -> dict[str, Path]:
    """The visible folders in a folder by name; all else goes to ``ignored``."""
    folders = {}
    for entry in _entries(folder):
        if _is_folder(entry) and not _hidden(entry.name):
            folders[entry.name] = Path(entry.path)
        else:
            ignored.append(Path(entry.path))
    return folders


def _images(folder: Path, ignored: list[Path]) -> tuple[Path, ...]:
    """What is named like an image, at any depth, sorted: dead links and folders too, which reading reports."""
    seen = {_identity(path) for path in (folder.resolve(), *folder.resolve().parents)}
    images: list[Path] = []
    # A list of what is open and no recursion: folders can be nested deeper than Python's calls.
    walks = [_entries(folder)]
    while walks:
        entry = next(walks[-1], None)
        if entry is None:
            walks.pop()
            continue
        path = Path(entry.path)
        if _hidden(entry.name):
            ignored.append(path)
        elif path.suffix.lower() in SUFFIXES:
            images.append(path)
        elif not _is_folder(entry):
            ignored.append(path)
        elif (identity := _identity(path)) not in seen:
            seen.add(identity)
            walks.append(_entries(path))
    return tuple(images)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that is closed to us: a link to none
        return False


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{clean(path)}: cannot be listed: {error.strerror}") from error
    return status.st_dev, status.st_ino


def listed(names: tuple[str, ...] | list[str], most: int = 8) -> str:
    """Names in quotation marks, with control characters escaped."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _held(folder: Path) -> str:
    names = [entry.name + ("/" if _is_folder(entry) else "") for entry in _entries(folder)]
    return listed(names, 5) if names else "nothing"
