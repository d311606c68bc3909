"""Localization of a run: activation maps against known boxes, for data that have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from metamixer.config.yaml_file import RecipeError
from metamixer.core.seeding import generator
from metamixer.data import Data, ImageSet
from metamixer.data.image_set import evenly_spaced
from metamixer.evaluation.localization.activation_maps import NoMap
from metamixer.evaluation.localization.boxes import read_boxes
from metamixer.evaluation.localization.localize import Localization, localize
from metamixer.evaluation.localization.map_gallery import Shown, gallery
from metamixer.runs.run import OpenRun, open_run, split_of

EVERY = 5
"""Without held-out boxes, thresholds are chosen on every fifth image with boxes, which is then not measured."""

Pointer = Literal["LATEST", "BEST"]


@dataclass(frozen=True, eq=False)
class Marked:
    """Images with at least one box each.

    Args:
        images: the images.
        boxes: boxes of each image, ``(k, 4)``.
        notes: notes on images that were left out.
    """

    images: ImageSet
    boxes: list[Tensor]
    notes: tuple[str, ...] = ()

    def subset(self, rows: Tensor) -> Marked:
        """The images ``rows`` only."""
        return replace(self, images=self.images.subset(rows), boxes=[self.boxes[row] for row in rows.tolist()])


def localize_run(
    run: Path | OpenRun,
    boxes: Path | None = None,
    held_out_boxes: Path | None = None,
    *,
    pointer: Pointer = "LATEST",
    limit: int | None = None,
    tolerance: float = 0.0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Localization:
    """Measure how well the networks of a run localize the objects of its test images.

    Args:
        run: the run folder, or an open run, for which ``pointer`` and ``device`` are not used.
        boxes: a CSV file with boxes of the test images; None: the data include boxes, as ``scenes:`` do, or the data
            folder has the files ``test_boxes.csv`` and, if thresholds are chosen on validation images,
            ``val_boxes.csv``.
        held_out_boxes: the same for the validation images, on which thresholds are chosen. If there are no boxes of
            validation images, thresholds are chosen on every fifth test image, which is then not measured.
        pointer: the checkpoint.
        limit: the largest number of images to measure, evenly spaced, and of held-out images.
        tolerance: tolerance of the pointing game in pixels.
        device: the device.
        progress: called as progress(done, total), in images.

    Raises:
        RecipeError: the folder is not a run, its data have no boxes, or no network has feature maps.
        DataError, CheckpointError: the data are missing, a file of boxes is not valid, or there is no checkpoint.
    """
    if limit is not None and limit < 2:
        raise RecipeError(f"limit {limit}: expected at least 2 images")
    run = open_run(run, pointer, device) if isinstance(run, Path) else run
    data = run.data
    measured, held_out = _marked(data, boxes, held_out_boxes)
    measured, held_out = (_few(part, limit) for part in (measured, held_out))
    try:
        found = localize(
            run.cohort,
            measured.images,
            measured.boxes,
            held_out=(held_out.images, held_out.boxes),
            mean=data.mean,
            std=data.std,
            names=run.recipe.names,
            tolerance=tolerance,
            workers=run.recipe.data.workers,
            progress=progress,
        )
    except NoMap as error:
        raise RecipeError(f"{run.folder}: {error}") from error
    return replace(found, notes=(*measured.notes, *held_out.notes, *found.notes))


def show_run(
    folder: Path,
    boxes: Path | None = None,
    *,
    count: int = 12,
    seed: int = 0,
    thresholds: Localization | float = 0.3,
    pointer: Pointer = "LATEST",
    device: str = "cpu",
    at: str | None = None,
) -> tuple[Shown, ...]:
    """Predictions and activation maps of all networks of a run for some test images, for a report.

    Args:
        folder: the run folder.
        boxes: a CSV file with boxes of the test images; None: the boxes of the data, if any.
        count: number of images, chosen at random so that the selection is not biased.
        seed: seed of the selection.
        thresholds: thresholds of the maps for boxes: those that :func:`localize_run` chose for an overlap of 0.5, or
            one for all networks.
        pointer: the checkpoint.
        device: the device.
        at: the current path of the data; None: unchanged.

    Raises:
        RecipeError, DataError, CheckpointError: as in :func:`localize_run`; but boxes may be missing.
    """
    run = open_run(folder, pointer, device, data=at, splits=())  # only a few images are decoded
    data = run.data
    known = boxes is not None or _has_boxes(data, "test")
    part = _of_split(data, "test", boxes) if known else Marked(split_of(data, "test"), [])
    rows = torch.randperm(len(part.images), generator=generator(seed, "gallery"))[:count].sort().values
    levels: float | list[float]
    if isinstance(thresholds, Localization):
        chosen = {one.name: one.thresholds["0.5"] for one in thresholds.networks}
        levels = [chosen.get(name, 0.3) for name in run.recipe.names]
    else:
        levels = thresholds
    try:
        return gallery(
            run.cohort,
            part.images.fetch(rows),
            part.images.labels[rows],
            data.classes,
            mean=data.mean,
            std=data.std,
            boxes=[part.boxes[row] for row in rows.tolist()] if known else None,
            names=run.recipe.names,
            thresholds=levels,
        )
    except NoMap as error:
        raise RecipeError(f"{folder}: {error}") from error


def _marked(data: Data, boxes: Path | None, held_out_boxes: Path | None) -> tuple[Marked, Marked]:
    test = _of_split(data, "test", boxes)
    if held_out_boxes is not None or (boxes is None and _has_boxes(data, "val")):
        return test, _of_split(data, "val", held_out_boxes)
    everything = torch.arange(len(test.images))
    if len(everything) < EVERY:
        raise RecipeError(f"{len(everything)} test images with boxes are too few to choose thresholds on some of them")
    note = f"every {EVERY}th test image with boxes chose the thresholds and was not measured"
    held_out = test.subset(everything[::EVERY])
    return test.subset(everything[everything % EVERY != 0]), replace(held_out, notes=(note,))


def _has_boxes(data: Data, split: str) -> bool:
    return split in (data.boxes or {}) or _beside(data, split).is_file()


def _beside(data: Data, split: str) -> Path:
    """The file of boxes that a data folder may have for one of its splits."""
    return Path(data.name).expanduser() / f"{split}_boxes.csv"


def _of_split(data: Data, split: Literal["test", "val"], path: Path | None) -> Marked:
    """The images of a split that have boxes."""
    images = split_of(data, split)
    if path is None and (beside := _beside(data, split)).is_file():
        path = beside
    if path is not None:
        found = read_boxes(path, images, Path(data.name).expanduser())
    elif data.boxes is not None and split in data.boxes:
        found = [box[None] for box in data.boxes[split]]
    else:
        raise RecipeError(
            f"{data.name} has no boxes; expected a CSV file of them, also as {_beside(data, split)}, or "
            f"data.name=scenes:{data.name} in the recipe"
        )
    has = torch.tensor([len(box) > 0 for box in found])
    if not has.any():
        raise RecipeError(f"{path}: none of the {len(images)} {split} images of {data.name} has a box")
    missing = int((~has).sum())
    part = Marked(images, found, (f"{missing} of {len(images)} {split} images have no box in what networks see",))
    return part.subset(has.nonzero().flatten()) if missing else replace(part, notes=())


def _few(part: Marked, limit: int | None) -> Marked:
    if limit is None or len(part.images) <= limit:
        return part
    chosen = part.subset(evenly_spaced(len(part.images), limit))
    return replace(chosen, notes=(*part.notes, f"{limit} of {len(part.images)} images, evenly spaced"))
