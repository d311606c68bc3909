"""Full evaluation of a run, from its folder to ``evaluation.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from metamixer.config.yaml_file import RecipeError
from metamixer.core.files import write_whole
from metamixer.data import DataError
from metamixer.data.image_set import evenly_spaced
from metamixer.data.splits import Split
from metamixer.evaluation.assess import assess
from metamixer.evaluation.localization.localize import Localization
from metamixer.evaluation.networks import Panel
from metamixer.evaluation.report import Report
from metamixer.evaluation.robustness.attacks import ATTACKS
from metamixer.evaluation.robustness.cifar_c import CifarC
from metamixer.evaluation.robustness.corruptions import LEAST
from metamixer.evaluation.robustness.robustness import Probe, Progress, probe_all
from metamixer.runs.classifier import Classifier
from metamixer.runs.run import OpenRun, eval_loader, open_run, precision, split_of

ROBUSTNESS = ("corruptions", *ATTACKS)
"""The robustness measurements of a run."""
FILE = "evaluation.json"


Localize = Callable[[OpenRun], Localization]
"""Computes the localization part of a report."""


def _deployed(path: Path, device: torch.device) -> nn.Module | None:
    if not path.is_file():  # training has not ended
        return None
    try:
        return Classifier.load(path).network.to(device)
    except (ValueError, KeyError, RuntimeError) as error:
        raise DataError(str(error)) from error


def assess_run(
    folder: Path,
    split: Literal["test", "val"] = "test",
    pointer: Literal["LATEST", "BEST"] = "LATEST",
    robustness: Collection[str] = (),
    progress: Progress | None = None,
    *,
    limit: int | None = None,
    cifar_c: Path | None = None,
    device: str = "cpu",
    localize: Localize | None = None,
    seed: int = 0,
    data: str | None = None,
    check: bool = True,
) -> Report:
    """Measure all metrics of the peers, the ensemble and the deployed network of a run, on one split of its data.

    The report is also written to ``evaluation.json`` in the run folder; an existing file is replaced.

    Args:
        folder: the run folder.
        split: split of the images. Temperatures are fitted on the validation split; with ``val`` these are the reported
            images.
        pointer: the checkpoint; the deployed network is always that in the file of the run.
        robustness: names of :data:`ROBUSTNESS`.
        progress: called as progress(stage, done, total), in images.
        limit: the largest number of images for robustness, evenly spaced; other metrics use all images.
        cifar_c: the folder of the official CIFAR-10-C, to use instead of corrupting the images of the run.
        device: the device.
        localize: computes the localization part.
        seed: seed of the corruptions.
        data, check: the current path of the data, and whether to check them; see :func:`open_run`.

    Raises:
        RecipeError, DataError, CheckpointError: the folder is not a run, its data are missing or too small for
            corruptions, or it has no checkpoint.
        OSError: the file cannot be written.
    """
    if unknown := sorted(set(robustness) - set(ROBUSTNESS)):
        raise RecipeError(f"robustness: {', '.join(map(repr, unknown))}: expected some of {', '.join(ROBUSTNESS)}")
    if cifar_c is not None and split != "test":
        raise RecipeError("--cifar-c with split val: CIFAR-10-C is made of test images; expected split test")
    if limit is not None and limit < 1:
        raise RecipeError(f"limit {limit}: expected at least 1 image")
    needed: tuple[Split, ...] = ("val",) if split == "val" else ("val", "test")
    run = open_run(folder, pointer, device, data=data, check=check, splits=needed)
    recipe, found, images = run.recipe, run.data, split_of(run.data, split)
    deployed = _deployed(folder / "model.safetensors", run.device)
    files = None if cifar_c is None else CifarC.open(cifar_c, images.labels)
    if files is None and "corruptions" in robustness and min(images.size) < LEAST:
        size = "x".join(map(str, images.size))
        raise DataError(f"images of {size} are too small for corruptions; expected at least {LEAST} pixels")
    batches = eval_loader(recipe, found, images, run.device)
    val = None if found.val is None else eval_loader(recipe, found, found.val, run.device)
    totals = {"images": len(images), "validation images": 0 if found.val is None else len(found.val)}

    def with_total(stage: str, done: int) -> None:
        if progress:
            progress(stage, done, totals[stage])

    rows = evenly_spaced(len(images), limit)
    panel = Panel.of(run.cohort, recipe.names, deployed)
    probe = Probe(panel, images, rows, found.mean, found.std, run.device, precision(run), progress)
    report = assess(
        run.cohort,
        batches,
        validation=batches if split == "val" else val,
        names=recipe.names,
        classes=found.classes,
        deployed=deployed,
        precision=precision(run),
        progress=with_total,
        split=split,
        checkpoint="last" if pointer == "LATEST" else "best",
        robustness=probe_all(probe, robustness, files, seed),
        localization=None if localize is None else localize(run),
    )
    write_whole(folder / FILE, json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n")
    return report
