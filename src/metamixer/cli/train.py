"""``metamixer train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metamixer.cli.options import AllowImports, DataName, DeviceName, ImageSize, MixerName, Peers, Words


def train(
    words: Words = None,
    data: DataName = None,
    peers: Peers = None,
    mixer: MixerName = None,
    loss: Annotated[str | None, typer.Option("--loss", metavar="NAME", help="A name of `list losses`.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images per step.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", metavar="32|bf16|16", help="Training precision; bf16 and 16 need hardware support."
        ),
    ] = None,
    device: Annotated[DeviceName | None, typer.Option("--device", help="Device to compute on.")] = None,
    image_size: ImageSize = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="Threads on the CPU. [default: one for each processor; of a run, its own]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Output folder of the run. [default: a new one in runs/]"),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="FOLDER|auto", help="Resume a run; auto: resume --out if it exists."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train the same peers without distillation and mixing, to compare.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train a few steps, print what an epoch costs, and keep nothing.")
    ] = False,
    allow_imports: AllowImports = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and the result only.")] = False,
) -> int:
    """Train a cohort, and write the network to deploy.

    Without a recipe: metamixer train --data photos/ --peers timm:resnet18,timm:mobilenetv3_small_100
    """
    from metamixer.cli.recipe_args import Sugar
    from metamixer.cli.train_recipe import dry_train, train_recipe

    sugar = Sugar(data, peers, mixer, loss, epochs, batch_size, seed, precision, device, image_size)
    if dry_run:
        if resume or baseline:
            raise typer.BadParameter("accepted without --resume and --baseline", param_hint="--dry-run")
        return dry_train(words or [], sugar, threads)
    return train_recipe(words or [], sugar, out, resume, baseline, quiet, threads)
