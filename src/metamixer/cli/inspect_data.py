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
    shapes = Counter(file.shape for file in found.files if file.shape is not None)
    common = ", ".join(f"{n} of {'x'.join(map(str, shape))}" for shape, n in shapes.most_common(3))
    say(f"shapes, as channels x height x width: {common}{', ...' if len(shapes) > 3 else ''}")
    for file in found.bad:
        say(f"{file.code}: {clean(file.path)}: {file.cause}", style="red")
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
