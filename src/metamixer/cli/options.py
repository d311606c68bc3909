"""Options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def _allow_imports(asked: bool) -> bool:
    if asked:
        from metamixer.core.trusted_imports import allow_all

        allow_all()
    return asked


DeviceName = Literal["auto", "cpu", "cuda"]

Device = Annotated[DeviceName, typer.Option("--device", help="Device to compute on.")]
Seed = Annotated[int, typer.Option("--seed", help="Random seed.")]
AllowImports = Annotated[
    bool,
    typer.Option(
        "--allow-imports",
        callback=_allow_imports,
        help="Allow importing code named in recipe files. Only for files you trust.",
    ),
]

# Options of commands that take a recipe.
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE.yaml key=value", help="A recipe file, and overrides such as optim.lr=0.05."),
]
DataName = Annotated[
    str | None, typer.Option("--data", metavar="NAME|FOLDER", help="A folder of images, or a name of `list data`.")
]
Peers = Annotated[
    str | None,
    typer.Option("--peers", metavar="A,B", help="Networks to train together, such as timm:resnet18,resnet20."),
]
MixerName = Annotated[str | None, typer.Option("--mixer", metavar="NAME", help="A name of `list mixers`.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="Resize images to this side in pixels.")]

# Options of commands that take a run.
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
DataAt = Annotated[
    str | None, typer.Option("--data", metavar="FOLDER", help="Read the data of the run from this folder.")
]


def resolved(device: DeviceName) -> str:
    """The device; ``auto`` is the GPU if there is one."""
    from torch import cuda

    return device if device != "auto" else "cuda" if cuda.is_available() else "cpu"
