"""``metamixer check`` and ``metamixer preview``: to look before one trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from metamixer.cli.console import console, say, table, titled
from metamixer.cli.exit_codes import DATA, told
from metamixer.cli.recipe_args import Sugar, recipe_of
from metamixer.config.yaml_file import RecipeError
from metamixer.core.text import clean
from metamixer.data import check as check_folder
from metamixer.data.files.folder_check import TINY, FolderCheck
from metamixer.data.files.folder_scan import FolderLayout
from metamixer.runs.mixing_preview import draw


@told
def check(folder: Path, layout: FolderLayout) -> int:
    """Decode every image of a folder; the exit code says whether all could be read."""
    found = check_folder(folder, layout)
    for note in found.notes:
        say(f"note: {note}", style="yellow")
    splits = list(dict.fromkeys(file.split for file in found.files))
    made = table(["class", *splits])
    for label in found.classes:
        made.add_row(Text(clean(label)), *(str(found.counts.get((split, label), 0)) for split in splits))
    totals = Counter({split: sum(n for (s, _), n in found.counts.items() if s == split) for split in splits})
    made.add_section()
    made.add_row("all", *(str(totals[split]) for split in splits))
    console().print(titled(f"images of {folder} that can be read", made))
    _sizes(found)
    _odd(found)
    _copies(found)
    for file in found.bad:
        say(f"{file.code}: {clean(file.path)}: {file.cause}", style="red")
    if found.bad:
        say(f"{len(found.bad)} of {len(found.files)} cannot be read; data.on_error=skip trains without them")
    return DATA if found.bad else 0


def _sizes(found: FolderCheck) -> None:
    shapes = Counter(file.shape for file in found.files if file.shape is not None)
    common = ", ".join(f"{n} of {'x'.join(map(str, shape))}" for shape, n in shapes.most_common(3))
    say(f"shapes, as channels x height x width: {common}{', ...' if len(shapes) > 3 else ''}")
    if len(shapes) > 1:
        every = [shape for shape in shapes.elements() if shape]
        made = table(["", "smallest", "median", "largest"])
        for axis, name in ((1, "height"), (2, "width")):
            sides = sorted(shape[axis] for shape in every)
            made.add_row(name, str(sides[0]), str(sides[len(sides) // 2]), str(sides[-1]))
        console().print(made)
        channels = Counter(shape[0] for shape in every)
        say("channels: " + ", ".join(f"{count} images of {number}" for number, count in sorted(channels.items())))
    totals = Counter(file.label for file in found.files if file.code == "ok" and file.split in ("train", "all"))
    most, least = max(totals, key=totals.__getitem__, default=""), min(totals, key=totals.__getitem__, default="")
    if totals and totals[most] > 5 * totals[least]:
        say(f"classes differ by more than 5 times: {totals[most]} of {clean(most)}, {totals[least]} of {clean(least)}")


def _odd(found: FolderCheck) -> None:
    for what, files in (
        ("blank, of nearly one colour", [file for file in found.files if file.blank]),
        (f"tiny, with a side below {TINY} pixels", [file for file in found.files if file.tiny]),
    ):
        if files:
            say(f"{len(files)} images are {what}: {_listed([clean(file.path) for file in files])}", style="yellow")


def _copies(found: FolderCheck) -> None:
    """Copies by where they are; those between splits first, because a test that saw its answers is none."""
    groups: dict[tuple[str, str], list[str]] = {}
    leaks: Counter[str] = Counter()
    for copy in found.copies:
        first, second = found.files[copy.first], found.files[copy.second]
        groups.setdefault((found.where(copy), copy.kind), []).append(f"{clean(second.path)} = {clean(first.path)}")
        if first.split == "train" and second.split != "train":
            leaks[second.split] += 1
    for split, count in leaks.items():
        say(f"{count} {split} images are copies of training images", style="red")
    for (where, kind), pairs in sorted(groups.items(), reverse=True):
        say(f"{len(pairs)} copies {where}, {kind}: {_listed(pairs)}", style="yellow")


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@told
def preview(words: Sequence[str], sugar: Sugar, out: Path, images: int, seed: int) -> int:
    """Draw what the mixer makes of the user's own images."""
    if out.suffix.lower() != ".png":
        raise RecipeError(f"--out {out}: the picture is a .png")
    recipe = recipe_of(words, sugar)
    for line in draw(recipe, out, images=images, seed=seed):
        say(line)
    say(f"written: {out}")
    return 0
