"""``optim.lr=auto`` and ``train.batch_size=auto``: determined before the first step, and saved with the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.eval_mode import evaluating
from metamixer.core.files import write_whole
from metamixer.core.machine import available_memory
from metamixer.data import Data, TrainLoader
from metamixer.losses.base import Loss
from metamixer.training.distributed import ProcessGrid
from metamixer.training.out_of_memory import kept_bytes
from metamixer.training.range_test import RangeTest, range_test

FILE, PICTURE = "auto.json", "lr.png"
LARGEST = 256
_STEPS = 20  # the least number of steps in an epoch


def is_auto(recipe: Recipe) -> bool:
    """Whether a setting of a recipe is ``auto``."""
    return "auto" in (recipe.optim.lr, recipe.train.batch_size)


def settled(
    recipe: Recipe, folder: Path, data: Data, grid: ProcessGrid, loader: Callable[[Recipe, Data], TrainLoader]
) -> tuple[Recipe, list[str]]:
    """The recipe with numbers instead of ``auto``, and notes on those that were determined now.

    Args:
        recipe: recipe of the run.
        folder: the run folder; its ``auto.json`` has the numbers that were determined before.
        data: data on the device.
        grid: the launched processes of the run.
        loader: creates the training batches.

    Raises:
        RecipeError: the numbers of a run that is resumed are missing.
        TrainingError: no learning rate was found.
    """
    if not is_auto(recipe):
        return recipe, []
    known: dict[str, Any] = grid.from_first(_read(folder) if grid.is_first else {})
    notes: list[str] = []
    if recipe.train.batch_size == "auto":
        if "batch_size" not in known:
            _not_begun(folder, "train.batch_size")
            known["batch_size"], note = _batch_size(recipe, data, grid)
            notes.append(note)
        recipe = recipe.model_copy(update={"train": replace(recipe.train, batch_size=known["batch_size"])})
    if recipe.optim.lr == "auto":
        if "lr" not in known:
            _not_begun(folder, "optim.lr")
            found = _rate(recipe, data, grid, loader(recipe, data))
            known |= {"lr": found.lr, "range_test": {"rates": found.rates, "losses": found.losses}}
            if grid.is_first:
                draw(found, folder / PICTURE)
            notes.append(f"optim.lr=auto: {found.lr:g} by a range test of {len(found.rates)} steps, drawn in {PICTURE}")
        recipe = recipe.model_copy(update={"optim": replace(recipe.optim, lr=known["lr"])})
    if notes and grid.is_first:
        write_whole(folder / FILE, json.dumps(known, indent=1) + "\n")
    return recipe, notes


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {"batch_size": int(known["batch_size"])} | known if "batch_size" in known else dict(known)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path} is damaged: {error}") from error


def _not_begun(folder: Path, key: str) -> None:
    if (folder / "checkpoints").is_dir():
        raise RecipeError(f"{folder} has no {FILE} with the {key} that it began with; expected a copy of that file")


def _batch_size(recipe: Recipe, data: Data, grid: ProcessGrid) -> tuple[int, str]:
    """The largest power of two up to 256 whose step needs half of the free memory, with 20 steps in an epoch."""
    cohort = recipe.cohort_for(data, fetch=False).to(grid.device)
    images = torch.zeros(2, data.channels, *data.size, device=grid.device)
    with evaluating(cohort), grid.autocast():
        each = kept_bytes(cohort, images)
    free = torch.cuda.mem_get_info()[0] if grid.device.type == "cuda" else available_memory()
    fits = -int(grid.largest(-(free / 2 / each))[0]) * grid.shares * recipe.train.micro_batches
    most = min(LARGEST, len(data.train) // _STEPS, fits)
    found = max(2, grid.shares, 1 << max(0, most).bit_length() >> 1)
    return found, (
        f"train.batch_size=auto: {found}; {each / 2**20:.1f} MiB an image, {free / 2**30:.1f} GiB free, "
        f"{len(data.train):,} training images"
    )


def _rate(recipe: Recipe, data: Data, grid: ProcessGrid, train: TrainLoader) -> RangeTest:
    loss = recipe.build_loss()
    Loss.of(loss).set_pixels(data.mean, data.std)
    return range_test(
        recipe.cohort_for(data), recipe.build_mixer(), loss, train, recipe.train, recipe.optim,
        grid=grid, peers=recipe.peer_settings, names=recipe.names,
    )  # fmt: skip


def draw(found: RangeTest, path: Path) -> None:
    """Plot the loss over the learning rate, with the chosen rate."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(found.rates, found.losses, color="#1f77b4")
        axes.axvline(found.lr, color="#d62728", linewidth=1)
        axes.annotate(f"{found.lr:g}", (found.lr, 1), xycoords=("data", "axes fraction"), ha="right", va="top")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss, running mean of the steps")
        figure.savefig(path, dpi=150)
