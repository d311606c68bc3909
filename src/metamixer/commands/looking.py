"""``metamixer list``, ``metamixer check`` and ``metamixer preview``: to look before one trains."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from metamixer.commands.faults import DATA, told
from metamixer.commands.options import Sugar, recipe_of
from metamixer.datasets import DATASETS
from metamixer.datasets import check as check_folder
from metamixer.models import MODELS
from metamixer.named import LOSSES, MIXERS, all_settings
from metamixer.preview import draw
from metamixer.recipe_file import RecipeError
from metamixer.terminal import clean, console, say, table, titled

_OTHER_NETWORKS = {
    "timm:NAME": "any network of timm, such as timm:mobilenetv3_small_100",
    "torchvision:NAME": "any classifier of torchvision, such as torchvision:resnet18",
    "package.module:callable": "your own, called with num_classes and in_channels",
}
_OTHER_DATA = {
    "FOLDER": "images in train/CLASS/, val/CLASS/ and test/CLASS/, or in CLASS/",
    "hf:NAME": "a Hugging Face data set (needs the extra hf)",
}
_OTHER_PARTS = {"package.module:Name": "your own"}


@told
def show_names(what: str | None) -> int:
    """The names that a recipe can have, each with a line, mixers and losses with their settings."""
    tables: dict[str, Callable[[], None]] = {
        "networks": lambda: _print("networks", {name: _line(make) for name, make in MODELS.items()}, _OTHER_NETWORKS),
        "mixers": lambda: _print_parts("mixers", MIXERS),
        "losses": lambda: _print_parts("losses", LOSSES),
        "data": lambda: _print("data", DATASETS, _OTHER_DATA),
    }
    if what is not None and what not in tables:
        raise RecipeError(f"{what!r} is no list; {', '.join(tables)} would work")
    for name, show in tables.items():
        if what in (None, name):
            show()
    return 0


def _line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0].replace("``", "")


def _print(title: str, rows: Mapping[str, str], others: Mapping[str, str]) -> None:
    made = table(["name", "what it is"], numbers=False)
    for name, line in {**rows, **others}.items():
        made.add_row(name, line)
    console().print(titled(title, made))


def _print_parts(title: str, parts: Mapping[str, type]) -> None:
    made = table(["name", "what it is", "settings"], numbers=False)
    for name, part in parts.items():
        settings = all_settings({"name": name}, parts)
        lines = [f"{key}={'null' if value is None else value}" for key, value in settings.items()]
        made.add_row(name, _line(part), "\n".join(lines))
    for name, line in _OTHER_PARTS.items():
        made.add_row(name, line, "")
    console().print(titled(title, made))


@told
def check(folder: Path) -> int:
    """Decode every image of a folder; the exit code says whether all could be read."""
    found = check_folder(folder)
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
    shapes = Counter(file.shape for file in found.files if file.shape is not None)
    common = ", ".join(f"{n} of {'x'.join(map(str, shape))}" for shape, n in shapes.most_common(3))
    say(f"shapes, as channels x height x width: {common}{', ...' if len(shapes) > 3 else ''}")
    for file in found.bad:
        say(f"{file.code}: {file.path}: {file.cause}", style="red")
    if found.bad:
        say(f"{len(found.bad)} of {len(found.files)} cannot be read; data.on_error=skip trains without them")
    return DATA if found.bad else 0


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
