"""``metamixer check``: check a folder of images before training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from metamixer.cli.console import console, say, table, titled
from metamixer.core.text import clean, counted, listed

if TYPE_CHECKING:
    from metamixer.data.files.folder_check import FolderCheck


def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images.")],
    layout: Annotated[
        Literal["auto", "classes"],
        typer.Option("--layout", help="Find splits by their names (auto), or treat each folder as a class (classes)."),
    ] = "auto",
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with pictures of the findings.")
    ] = None,
) -> int:
    """Decode all images of a folder, and list the unreadable ones."""
    from metamixer.cli.exit_codes import DATA
    from metamixer.data import check as check_folder

    if html is not None:
        from metamixer.report.check_page import check_place, write_check

        check_place(folder, html)
    found = check_folder(folder, layout)
    for note in found.notes:
        say(f"note: {note}", style="yellow")
    splits = list(dict.fromkeys(file.split for file in found.files))
    made = table(["class", *splits])
    for label in found.classes:
        made.add_row(clean(label), *(f"{found.counts.get((split, label), 0):,}" for split in splits))
    totals = Counter({split: sum(n for (s, _), n in found.counts.items() if s == split) for split in splits})
    made.add_section()
    made.add_row("all", *(f"{totals[split]:,}" for split in splits))
    console().print(titled(f"images of {folder} that can be read", made))
    _sizes(found)
    _odd(found)
    _copies(found)
    for file in found.bad:
        say(f"{file.code}: {clean(file.path)}: {file.cause}", style="red")
    for cause, count in Counter(file.cause for file in found.bad if "needs pip install" in file.cause).items():
        say(f"{counted(count, 'file')}: {cause}", style="red")
    if found.bad:
        say(f"{len(found.bad)} of {len(found.files)} cannot be read; data.on_error=skip trains without them")
    if html is not None:
        write_check(found, folder, html)
        say(f"written: {html}")
    return DATA if found.bad else 0


def _sizes(found: FolderCheck) -> None:
    from metamixer.data.class_sampling import REMEDY, imbalance

    shapes = Counter(file.shape for file in found.files if file.shape is not None)
    common = ", ".join(f"{n:,} of {'x'.join(map(str, shape))}" for shape, n in shapes.most_common(3))
    say(f"shapes, as channels x height x width: {common}{', ...' if len(shapes) > 3 else ''}")
    if len(shapes) > 1:
        every = [shape for shape in shapes.elements() if shape]
        made = table(["", "smallest", "median", "largest"])
        for axis, name in ((1, "height"), (2, "width")):
            sides = sorted(shape[axis] for shape in every)
            made.add_row(name, str(sides[0]), str(sides[len(sides) // 2]), str(sides[-1]))
        console().print(made)
        channels = Counter(shape[0] for shape in every)
        say("channels: " + ", ".join(f"{counted(n, 'image')} of {number}" for number, n in sorted(channels.items())))
    totals = Counter(file.label for file in found.files if file.code == "ok" and file.split in ("train", "all"))
    if unequal := imbalance(found.classes, [totals[name] for name in found.classes]):
        say(f"{unequal}; {REMEDY}", style="yellow")


def _odd(found: FolderCheck) -> None:
    from metamixer.data.files.folder_check import TINY

    for what, files in (
        ("blank, of nearly one colour", [file for file in found.files if file.blank]),
        (f"tiny, with a side below {TINY} pixels", [file for file in found.files if file.tiny]),
    ):
        if files:
            names = listed([clean(file.path) for file in files])
            say(f"{counted(len(files), 'image')} {what}: {names}", style="yellow")


def _copies(found: FolderCheck) -> None:
    """Print copies; those across splits first, because a test on training images is not valid."""
    groups: dict[tuple[str, str], list[str]] = {}
    leaks: Counter[str] = Counter()
    for copy in found.copies:
        first, second = found.files[copy.first], found.files[copy.second]
        groups.setdefault((found.where(copy), copy.kind), []).append(f"{clean(second.path)} = {clean(first.path)}")
        if first.split == "train" and second.split != "train":
            leaks[second.split] += 1
    for split, count in leaks.items():
        say(f"copies of training images: {counted(count, f'{split} image')}", style="red")
    for (where, kind), pairs in sorted(groups.items(), reverse=True):
        say(f"copies {where}, {kind} ({len(pairs)}): {listed(pairs)}", style="yellow")
