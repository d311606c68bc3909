"""To examine a run: from its folder to all that is to be known of its networks, and to ``evaluation.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.files import write_whole
from metamixer.data import Data, DataError, ImageSet
from metamixer.evaluation.assess import Assessment, assess
from metamixer.evaluation.networks import Panel
from metamixer.evaluation.robustness.attacks import ATTACKS
from metamixer.evaluation.robustness.cifar_c import CifarC
from metamixer.evaluation.robustness.corruptions import LEAST
from metamixer.evaluation.robustness.robustness import Probe, Progress, clean, corruptions, under_attack
from metamixer.runs import run as runs
from metamixer.runs.classifier import Classifier

ROBUSTNESS = ("corruptions", *ATTACKS)
"""What a run can be probed with."""
FILE = "evaluation.json"


@dataclass(frozen=True, eq=False)
class Examined:
    """A run that was loaded.

    Args:
        folder, recipe, data: the run's.
        images: the split that is examined.
        rows: ``(N,)`` the images of it that what is expensive uses.
        cohort: with the checkpoint's weights, in evaluation mode, on ``device``.
        names: of the peers.
        deployed: the network of ``model.safetensors``, on ``device``, or None.
        device: where the networks are.
    """

    folder: Path
    recipe: Recipe
    data: Data
    images: ImageSet
    rows: Tensor
    cohort: Cohort
    names: tuple[str, ...]
    deployed: nn.Module | None
    device: torch.device


Localize = Callable[[], dict[str, Any]]
"""Gives the ``localization`` part of an assessment; which run it is about, it knows."""


def open_run(
    folder: Path,
    split: Literal["test", "val"] = "test",
    pointer: Literal["LATEST", "BEST"] = "LATEST",
    *,
    limit: int | None = None,
    device: str = "cpu",
) -> Examined:
    """Load what :func:`assess_run` works with; arguments and errors as there."""
    if limit is not None and limit < 1:
        raise RecipeError(f"limit {limit}: at least 1 image would work")
    recipe, data, cohort = runs.open_run(folder, pointer)
    images = runs.split_of(data, split)
    where = torch.device(device)
    deployed = _deployed(folder / "model.safetensors")
    # Evenly spaced: folders come class by class.
    rows = (
        torch.linspace(0, len(images) - 1, min(limit or len(images), len(images)), dtype=torch.float64).round().long()
    )
    return Examined(
        folder,
        recipe,
        data.to(where),
        images.to(where),
        rows,
        cohort.to(where).eval(),
        recipe.names,
        None if deployed is None else deployed.to(where),
        where,
    )


def _deployed(path: Path) -> nn.Module | None:
    if not path.is_file():  # the training has not ended
        return None
    try:
        return Classifier.load(path).network
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
) -> Assessment:
    """All that is to be known of a run's peers, its ensemble and its deployed network, on one split of its data.

    It is also written into the run's folder, as ``evaluation.json``, in the place of the one that was there.

    Args:
        folder: of the run.
        split: which of its images. The temperatures are fitted on the validation split; with ``val`` on the images
            that are reported.
        pointer: which of its checkpoints; the deployed network is the one of the run's file.
        robustness: names of :data:`ROBUSTNESS`.
        progress: is told what is being done, how many images are done, and of how many.
        limit: so many images, evenly spaced, for robustness; the other figures are of all.
        cifar_c: the folder of the official CIFAR-10-C, to be read instead of corrupting here.
        device: where to compute.
        localize: gives the localization part.
        seed: of the corruptions.

    Raises:
        RecipeError, DataError, CheckpointError: it is no run, its data are gone or too small for corruptions, or it has
            no checkpoint.
        OSError: the file cannot be written.
    """
    if unknown := sorted(set(robustness) - set(ROBUSTNESS)):
        raise RecipeError(f"robustness: {', '.join(map(repr, unknown))}: {', '.join(ROBUSTNESS)} would work")
    if cifar_c is not None and split != "test":
        raise RecipeError("CIFAR-10-C is made of test images; split test would work")
    run = open_run(folder, split, pointer, limit=limit, device=device)
    files = None if cifar_c is None else CifarC.open(cifar_c, run.images.labels)
    if files is None and "corruptions" in robustness and min(run.images.size) < LEAST:
        size = "x".join(map(str, run.images.size))
        raise DataError(f"images of {size} are too small for corruptions; from {LEAST} pixels on they work")
    # In the precision of the training, so that the figures are those of its table.
    bf16 = run.recipe.train.precision == "bf16"
    precision = torch.autocast(run.device.type, torch.bfloat16, enabled=bf16)
    batches = runs.eval_loader(run.recipe, run.data, run.images, run.device)
    val = None if run.data.val is None else runs.eval_loader(run.recipe, run.data, run.data.val, run.device)
    totals = {"images": len(run.images), "validation images": 0 if run.data.val is None else len(run.data.val)}

    def told(what: str, done: int) -> None:
        if progress:
            progress(what, done, totals[what])

    probe = Probe(
        Panel.of(run.cohort, run.names, run.deployed),
        run.images,
        run.rows,
        run.data.mean,
        run.data.std,
        run.device,
        precision,
        progress,
    )
    found = assess(
        run.cohort,
        batches,
        validation=batches if split == "val" else val,
        names=run.names,
        classes=run.data.classes,
        deployed=run.deployed,
        precision=precision,
        progress=told,
        split=split,
        checkpoint="last" if pointer == "LATEST" else "best",
        robustness=_probed(probe, robustness, files, seed),
        localization=None if localize is None else localize(),
    )
    write_whole(folder / FILE, json.dumps(found.as_dict(), indent=1, allow_nan=False) + "\n")
    return found


def _probed(probe: Probe, wanted: Collection[str], files: CifarC | None, seed: int) -> dict[str, Any] | None:
    attacks = {name: attack for name, attack in ATTACKS.items() if name in wanted}
    corrupted = "corruptions" in wanted or files is not None
    if not attacks and not corrupted:
        return None
    found: dict[str, Any] = {"images": len(probe.rows), "clean": clean(probe)}
    if corrupted:
        found["corruptions"] = corruptions(probe, files, seed)
    if attacks:
        found["attacks"] = under_attack(probe, attacks)
    return found
