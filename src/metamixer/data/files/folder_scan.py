"""Scan image folders: find the files, their splits and their classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metamixer.core.text import clean, quoted
from metamixer.data.errors import DataError
from metamixer.data.files.folder_walk import entries, folders, images, is_folder, is_image_name, is_run, left_out
from metamixer.data.files.image_file import SUFFIXES
from metamixer.data.files.split_names import split_alike, split_named

FolderLayout = Literal["auto", "classes"]
"""``auto``: recognise splits by their names; ``classes``: every folder is a class."""
_SPLIT_WORD = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Layout:
    """The files of a folder of images.

    Args:
        classes: the names of the class folders, sorted.
        parts: the files and labels of ``train``, ``val`` and ``test``, or of ``all`` if the folder has no splits.
        ignored: hidden files and folders, run folders, files that are not images, and images outside of class folders.
        notes: unusual findings that are not errors, as sentences.
    """

    classes: tuple[str, ...]
    parts: Mapping[str, tuple[tuple[Path, ...], tuple[int, ...]]]
    ignored: tuple[Path, ...]
    notes: tuple[str, ...]


def scan(root: Path, layout: FolderLayout = "auto") -> Layout:
    """Find the splits, classes and images of a folder.

    The folder is either ``root/train/CLASS/…`` with optional validation and test folders, or ``root/CLASS/…``. It is
    the first if a training folder contains folders, or if all folders have names of splits
    (:data:`~metamixer.data.files.split_names.ALIASES`, in upper or lower case). Images of a class are found at any
    depth; links are followed, cycles are not. Run folders are left out.

    Args:
        root: the folder.
        layout: ``classes`` treats each folder in ``root`` as a class, whatever its name and content.

    Raises:
        DataError: the folder is missing or has no class folders, there is only one class, a class has no image, the
            classes are probably splits, or a class in ``val`` or ``test`` is not in ``train``.
    """
    if layout not in ("auto", "classes"):
        raise DataError(f"layout={layout!r}; expected 'auto' or 'classes'")
    if not root.is_dir():
        raise DataError(f"{clean(root)}: {'not a folder' if root.exists() else 'no such folder'}")
    ignored: list[Path] = []
    top = folders(root, ignored)
    named = {name: split for name in top if (split := split_named(name))}
    trains = [name for name, split in named.items() if split == "train" and folders(top[name], [])]
    if layout == "classes" or (len(named) < len(top) and not trains) or not top:
        return _layout(root, {"all": root}, [], (), guess=layout == "auto")
    parts: dict[str, Path] = {}
    for name, split in named.items():
        if split in parts:
            both = f"{parts[split].name!r} and {name!r}"
            raise DataError(f"{clean(root)}: {both} are both the {_SPLIT_WORD[split]} split")
        parts[split] = top[name]
    if "train" not in parts:
        raise DataError(f"{clean(root)}: has {quoted(top)} but no 'train' folder to learn from")
    beside = [path for name, path in top.items() if name not in named]
    notes = tuple(f"{clean(path)} is beside {parts['train'].name!r} and was ignored" for path in beside)
    return _layout(root, parts, [*ignored, *beside], notes, guess=True)


def _layout(root: Path, parts: dict[str, Path], ignored: list[Path], notes: tuple[str, ...], *, guess: bool) -> Layout:
    main = "train" if "train" in parts else "all"
    own = {part: folders(folder, ignored) for part, folder in parts.items()}
    if guess:
        _refuse_splits(parts[main], own[main])
    found = {part: _classes(parts[part], members, ignored) for part, members in own.items()}
    classes = tuple(sorted(found[main]))
    _check_classes(parts[main], found[main], classes)
    known = {_form(name): name for name in classes}
    for part, members in found.items():
        if extra := sorted(name for name in members if _form(name) not in known):
            raise DataError(
                f"{clean(parts[part])}: has {quoted(extra)}, not among the classes of {clean(parts[main])}: "
                f"{quoted(classes)}"
            )
        found[part] = members = {known[_form(name)]: files for name, files in members.items()}
        if absent := [name for name in classes if not members.get(name)]:
            notes += (f"{part} has no image of {quoted(absent)}",)
    files = {
        part: (
            tuple(path for name in classes for path in members.get(name, ())),
            tuple(label for label, name in enumerate(classes) for _ in members.get(name, ())),
        )
        for part, members in found.items()
    }
    files = {part: content for part, content in files.items() if content[0]}
    return Layout(classes, files, tuple(ignored), notes + left_out(root, ignored))


def _classes(folder: Path, own: dict[str, Path], ignored: list[Path]) -> dict[str, tuple[Path, ...]]:
    """The files of each class folder. A folder that contains runs and no images is not a class."""
    found: dict[str, tuple[Path, ...]] = {}
    forms: dict[str, str] = {}
    for name, path in own.items():
        passed: list[Path] = []
        files = images(path, passed)
        ignored += passed
        if not files and any(map(is_run, passed)):
            continue
        if twin := forms.get(_form(name)):
            raise DataError(
                f"{clean(folder)}: {twin!a} and {name!a} are one name in two Unicode forms; expected one "
                "folder for a class"
            )
        forms[_form(name)] = name
        found[name] = files
    return found


def _form(name: str) -> str:
    """A name in Unicode form NFC, because file systems store accents differently."""
    return unicodedata.normalize("NFC", name)


def _check_classes(folder: Path, found: dict[str, tuple[Path, ...]], classes: tuple[str, ...]) -> None:
    where = clean(folder)
    if not classes:
        raise DataError(
            f"{where}: no class folders; it holds {_held(folder)}. Expected one folder for each "
            f"class: {clean(folder.name)}/cat/1.jpg, {clean(folder.name)}/dog/2.jpg"
        )
    if len(classes) == 1:
        inside = list(folders(folder / classes[0], []))
        hint = f"; if its folders {quoted(inside)} are the classes, name {where}/{clean(classes[0])}"
        raise DataError(
            f"{where}: one class, {classes[0]!r}, is nothing to learn; expected two or more"
            f"{hint if len(inside) > 1 else ''}"
        )
    if empty := [name for name in classes if not found[name]]:
        raise DataError(f"{where}: no image in {quoted(empty)}; files that end in {' '.join(sorted(SUFFIXES))} count")


def _refuse_splits(folder: Path, own: dict[str, Path]) -> None:
    """Raise DataError if the folders are probably splits, or probably contain splits or classes."""
    where, instead = clean(folder), "data.layout=classes takes each folder for a class"
    alike = {split_alike(name): name for name in own}
    if "train" in alike and ("val" in alike or "test" in alike):
        names = [name for split, name in sorted(alike.items(), key=str) if split]
        raise DataError(
            f"{where}: {quoted(names)} look like splits, not classes; expected {where}/train/CLASS/1.jpg; {instead}"
        )
    tests = [name for name in own if split_alike(name) == "test"]
    if len(tests) == 1 and len(own) > 2:
        raise DataError(
            f"{where}: {tests[0]!r} looks like test images beside {len(own) - 1} classes, not like a class; expected "
            f"{where}/train/CLASS/1.jpg and {where}/test/CLASS/1.jpg, or test images elsewhere; {instead}"
        )
    inside: dict[str, list[str]] = {}
    for name, path in own.items():
        inside[name] = [entry.name for entry in entries(path) if is_folder(entry)]
        splits = {split_named(each) for each in inside[name]}
        if "train" in splits and ("val" in splits or "test" in splits):
            held = quoted([each for each in inside[name] if split_named(each)])
            raise DataError(f"{where}: {name!r} holds the splits {held}; expected {where}/{clean(name)}; {instead}")
    same = next(iter(inside.values()), [])
    alone = not any(is_image_name(Path(entry.path)) for path in own.values() for entry in entries(path))
    if alone and len(own) > 1 and len(same) > 1 and all(each == same for each in inside.values()):
        raise DataError(
            f"{where}: each of {quoted(own)} holds the same folders, {quoted(same)}; expected one folder for "
            f"each class; {instead}, with the images of all folders in it"
        )


def _held(folder: Path) -> str:
    names = [entry.name + ("/" if is_folder(entry) else "") for entry in entries(folder)]
    return quoted(names, 5) if names else "nothing"
