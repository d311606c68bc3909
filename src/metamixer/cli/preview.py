"""``metamixer preview``: draw mixed images of the data of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metamixer.cli.console import say
from metamixer.cli.options import AllowImports, DataName, ImageSize, MixerName, Peers, Seed, Words


def preview(
    words: Words = None,
    data: DataName = None,
    peers: Peers = None,
    mixer: MixerName = None,
    image_size: ImageSize = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Output file.")] = Path("preview.png"),
    allow_imports: AllowImports = False,
    images: Annotated[int, typer.Option("--images", min=2, max=16, help="Number of images.")] = 8,
    seed: Seed = 0,
) -> int:
    """Draw mixed images of your own data."""
    from metamixer.cli.recipe_args import Sugar, recipe_of
    from metamixer.config.yaml_file import RecipeError
    from metamixer.runs.mixing_preview import draw

    if out.suffix.lower() != ".png":
        raise RecipeError(f"--out {out}: the picture is a .png")
    recipe = recipe_of(words or [], Sugar(data=data, peers=peers, mixer=mixer, image_size=image_size))
    for line in draw(recipe, out, images=images, seed=seed):
        say(line)
    say(f"written: {out}")
    return 0
