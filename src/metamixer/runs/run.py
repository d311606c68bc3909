"""A run: train a recipe in a folder, from data to the deployed network.

The folder contains ``recipe.yaml`` (with all defaults), ``data.json`` (a record of the data), ``environment.json``,
``metrics.jsonl``, ``metrics.csv``, TensorBoard ``events/``, ``checkpoints/``, and at the end ``model.safetensors`` (the
peer to deploy) and ``report.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.config.data_section import DataSection, is_place, placeless_name, without_kind
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError, flat
from metamixer.core.files import write_whole
from metamixer.core.plan import Mixer
from metamixer.core.text import clean
from metamixer.data import Augment, Data, EvalLoader, FolderImages, ImageSet, TrainLoader
from metamixer.data.image_set import evenly_spaced
from metamixer.data.random_crop import RandomCrop
from metamixer.data.splits import Split
from metamixer.evaluation.evaluate import Report, Score, evaluate
from metamixer.losses.base import Loss
from metamixer.runs.auto_settings import settled
from metamixer.runs.before_data import check_before_data
from metamixer.runs.claim import claimed
from metamixer.runs.classifier import Classifier
from metamixer.runs.data_record import DataRecord, absolute, check_data, data_of, load_data, section_of, there
from metamixer.runs.environment import environment
from metamixer.training import checkpoint
from metamixer.training.auto_strength import is_auto
from metamixer.training.callbacks import Callback
from metamixer.training.distributed import ProcessGrid
from metamixer.training.half_precision import warn_if_slow
from metamixer.training.run_logger import Files
from metamixer.training.settings import HALF, RunInfo
from metamixer.training.started import is_first_process, layout
from metamixer.training.trackers import trackers
from metamixer.training.trainer import Best, Fitted, Trainer


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Args:
        folder: the run folder.
        split: split of the metrics: ``test``, or ``validation`` without a test split.
        last: metrics of every peer and the ensemble after the last epoch.
        deployed: metrics of the network in ``model``, selected by validation accuracy, on the same images.
        best: peer and epoch of that network.
        model: file of the deployed network.
        epochs: number of epochs done.
    """

    folder: Path
    split: str
    last: Report
    deployed: Score
    best: Best
    model: Path
    epochs: int


def augmentation(recipe: Recipe, data: Data) -> Augment:
    """The augmentation of training images; ``DataError`` if it changes colours that the images do not have."""
    augment = recipe.data.augmentation(round(max(data.size) / 8), data.mirror)
    augment.changes.check(data.channels)
    return augment


def train_loader(recipe: Recipe, data: Data, device: torch.device) -> TrainLoader:
    """Augmented training batches, with companions and views if recipe and loss need them."""
    return TrainLoader(
        data.train,
        augmentation(recipe, data),
        data.mean,
        data.std,
        _number(recipe.train.batch_size),
        recipe.train.seed,
        companions=_wants_companions(recipe),
        device=device,
        workers=recipe.data.workers,
        views=len(recipe.members) if "views" in recipe.loss.as_loss.needs else 1,
        per_class=recipe.train.per_class,
        sampler=recipe.data.sampler,
    )


def eval_loader(recipe: Recipe, data: Data, images: ImageSet, device: torch.device) -> EvalLoader:
    """Batches of a split without augmentation."""
    size = recipe.train.batch_size
    most = max(256, size) if isinstance(size, int) else 256
    return EvalLoader(images, data.mean, data.std, most, device, recipe.data.workers)


def _number(value: int | str) -> int:
    if isinstance(value, str):
        raise RecipeError(f"train.batch_size={value} is determined when a run begins; accepted here: a number")
    return value


def plain_loader(recipe: Recipe, data: Data, device: torch.device) -> EvalLoader:
    """Batches of a fixed part of the training images without augmentation, to measure overfitting."""
    return eval_loader(recipe, data, data.train.subset(evenly_spaced(len(data.train), _PLAIN)), device)


_PLAIN = 512


def _wants_companions(recipe: Recipe) -> bool:
    """Whether the mixer pastes companions; they are only decoded in this case."""
    return bool(getattr(recipe.build_mixer(), "wants_companions", True))


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    data: Data | None = None,
) -> Result:
    """Train a recipe in ``folder``.

    Args:
        recipe: the recipe.
        folder: a new or empty folder, or with ``resume`` a run of the same recipe. If several processes call this, as
            under torchrun, the folder of the first one is used, and all must be able to access it.
        resume: resume from the latest checkpoint; without a checkpoint training starts from the beginning.
        callbacks: read-only callbacks, see :class:`Callback`.
        data: the data of the recipe, if they are already loaded.

    Raises:
        RecipeError, DataError, TrainingError, CheckpointError: recipe, data or folder are not valid, or another process
            uses the folder.
        ProcessLost: another process of this run ended; ``resume=True`` continues the run.
        Interrupted: a signal was received; ``resume=True`` continues the run.
    """
    check_start(recipe)
    if is_first_process() and not (folder / "recipe.yaml").is_file():
        check_outside_of_data(recipe.data, folder)
    with claimed(folder, resume=resume) if is_first_process() else nullcontext():
        return _train(recipe, folder, resume, callbacks, data)


def _train(recipe: Recipe, folder: Path, resume: bool, callbacks: Sequence[Callback], data: Data | None) -> Result:
    if is_first_process() and resume and (folder / "recipe.yaml").is_file():
        check_same(recipe, folder)
    try:
        grid = ProcessGrid(recipe.train)
    except ValueError as error:
        raise RecipeError(f"train.{error}") from error
    grid.launch()
    folder, resume = Path(grid.from_first(str(folder))), grid.from_first(resume)
    if len(set(grid.everyone(recipe.digest))) > 1:
        raise RecipeError("the processes of this run were given different recipes")
    recipe, section = resumed(recipe, folder) if resume else (recipe, recipe.data)
    if data is None:
        check_before_data(recipe)
        data = load_data(recipe, section=section)
    began, before = (folder / "checkpoints").is_dir(), DataRecord.read(folder)
    if began:
        check_data(data, section, folder)
    disk_crops = began and (before is None or before.disk_crops)
    if data.test is None and data.val is None:
        share = max(0.1, 2 * recipe.data.val_share)  # the current share was too small to hold out an image
        raise RecipeError(f"data: neither a test nor a validation split; data.val_share={share:g} holds one out")
    data = data.to(grid.device)
    numbers, notes = settled(recipe, folder, data, grid, lambda now, of: train_loader(now, of, grid.device))
    cohort = recipe.cohort_for(data, notes=notes)
    mixer = recipe.build_mixer()
    _check_stages(mixer, cohort)
    loss = recipe.build_loss()
    Loss.of(loss).set_pixels(data.mean, data.std)
    facts = {"recipe": recipe.digest} | ({"recipe_before": _before(recipe)} if resume else {})
    trainer = Trainer(
        cohort,
        mixer,
        loss,
        numbers.train,
        optim=numbers.optim,
        peers=recipe.peer_settings,
        grid=grid,
        folder=folder,
        names=recipe.names,
        callbacks=(Files(folder), *trackers(recipe.train.trackers, folder, flat(recipe.as_dict())), *callbacks),
        info=RunInfo(facts, tuple(notes), len(data.classes)),
    )
    if grid.is_first:
        if recipe.before and (folder / "recipe.yaml").is_file() and recipe.differences(read_recipe(folder)):
            (folder / "report.json").unlink(missing_ok=True)  # it marks a finished run
        write_whole(folder / "recipe.yaml", recipe.as_yaml())
        DataRecord.of(data, section, disk_crops=disk_crops).write(folder)
        write_whole(folder / "environment.json", json.dumps(environment(), indent=1))
    val = None if data.val is None else eval_loader(recipe, data, data.val, trainer.device)
    plain = plain_loader(recipe, data, trainer.device) if is_auto(mixer) else None
    loader = train_loader(numbers, data, trainer.device)
    if disk_crops and isinstance(data.train, FolderImages) and recipe.data.crop_scale is None:
        loader = replace(loader, augment=replace(loader.augment, pad=0, crop=RandomCrop()))
    fitted = trainer.fit(loader, val, plain=plain, resume=resume)
    return _finish(recipe, folder, data, trainer, fitted)


def check_start(recipe: Recipe) -> None:
    """Raise RecipeError if the settings do not fit how this process was started; the message says what is accepted."""
    try:
        layout(recipe.train)
    except ValueError as error:
        raise RecipeError(f"train.{error}") from error


def _check_stages(mixer: Mixer, cohort: Cohort) -> None:
    """Refuse stages that the networks do not have before training, rather than when one is drawn."""
    stages, draws = getattr(mixer, "stages", None) or (), getattr(mixer, "stage_draws", 1)
    if any(stage > cohort.stages for stage in stages):
        raise RecipeError(
            f"mixer.stages: {max(stages)} is too deep, these networks have stages 0 (images) to {cohort.stages}"
        )
    boxes = getattr(mixer, "peers", None)
    learn = len(cohort.peers) - cohort.shadows
    if boxes is not None and boxes != learn:
        raise RecipeError(f"mixer.peers: boxes for {boxes} peers, there are {learn}; expected mixer.peers={learn}")
    if 1 < draws < learn:
        raise RecipeError(f"mixer.stage_draws: {draws} stages for {learn} peers; expected 1 for all of them or {learn}")


def _finish(recipe: Recipe, folder: Path, data: Data, trainer: Trainer, fitted: Fitted) -> Result:
    images, split = data.test or data.val, "test" if data.test is not None else "validation"
    assert images is not None  # noqa: S101
    batches = eval_loader(recipe, data, images, trainer.device)

    last = trainer.evaluate(batches)
    best, cohort, grid = fitted.best, trainer.cohort, trainer.grid
    load_checkpoint(cohort, folder, "BEST")
    deployed = (last if best.epoch == fitted.epochs else trainer.evaluate(batches, averaged=False)).peers[best.peer]
    model = folder / "model.safetensors"
    facts = facts_of(recipe) | {
        "peer": best.peer,
        "epoch": best.epoch,
        "validation_accuracy": None if best.accuracy != best.accuracy else best.accuracy,
    }
    if grid.share == 0 and best.peer in cohort.here:
        peer = recipe.members[best.peer % len(recipe.members)]  # a shadow has the architecture of its peer
        network = cohort.peers[best.peer]
        Classifier.trained_on(data, recipe.data, network, peer.name, peer.options, facts).save(model)
    grid.barrier()  # write the report only after the file
    if grid.is_first:
        report = {
            "split": split,
            "last_epoch": last.as_dict(),
            "learners": list(cohort.learners),
            "deployed": deployed.as_dict(),
            "best": facts,
            "notes": [*trainer.info.notes, *data.notes, *(f"skipped {name}: {cause}" for name, cause in data.skipped)],
        }
        # The existence of this file marks a finished run.
        write_whole(folder / "report.json", json.dumps(report, indent=1))
    grid.close()
    return Result(folder, split, last, deployed, best, model, fitted.epochs)


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """The origin of a network, for its file, without the path of the data."""
    return {
        "data": placeless_name(recipe.data.name),
        "method": f"{recipe.loss.name} + {recipe.mixer.name}",
        "recipe": recipe.digest,
        "metamixer": version("metamixer"),
    }


def load_checkpoint(cohort: Cohort, folder: Path, pointer: Literal["LATEST", "BEST"]) -> checkpoint.Checkpoint:
    """Load the weights of a checkpoint, averaged if it has averages, into a cohort built from the recipe of the run.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    path = checkpoint.pointed(folder / "checkpoints", pointer)
    if path is None:
        raise checkpoint.CheckpointError(f"{folder} has no checkpoint yet")
    found = checkpoint.read(path)
    found.load_weights(nn.ModuleDict({"cohort": cohort}), partial=True, averaged=True)
    return found


@dataclass(frozen=True, eq=False)
class OpenRun:
    """The recipe of a run, and its data and its cohort with the weights of a checkpoint on ``device``."""

    folder: Path
    recipe: Recipe
    data: Data
    cohort: Cohort
    device: torch.device


def open_run(
    folder: Path,
    pointer: Literal["LATEST", "BEST"] = "LATEST",
    device: str = "cpu",
    *,
    data: str | None = None,
    check: bool = True,
    splits: Collection[Split] = ("val", "test"),
) -> OpenRun:
    """Load a run for evaluation; training images are not decoded.

    Args:
        folder: the run folder.
        pointer: the checkpoint.
        device: the device.
        data: the current path of the data; None: as in training.
        check: refuse data whose classes, validation or test images have changed.
        splits: splits whose images are decoded in advance.

    Raises:
        RecipeError, DataError, CheckpointError: the folder is not a run, its data are missing or have changed, or it
            has no checkpoint.
    """
    recipe = read_recipe(folder)
    found = data_of(recipe, folder, data, splits=splits, check=check)
    cohort = recipe.cohort_for(found, fetch=False)
    load_checkpoint(cohort, folder, pointer)
    where = torch.device(device)
    return OpenRun(folder, recipe, found.to(where), cohort.to(where).eval(), where)


def split_of(data: Data, split: Literal["test", "val"]) -> ImageSet:
    """The images of a split; ``RecipeError`` if there is none."""
    images = data.test if split == "test" else data.val
    if images is None:
        raise RecipeError(f"{data.name} has no {split} split")
    return images


def evaluate_run(
    folder: Path,
    split: Literal["test", "val"] = "test",
    pointer: Literal["LATEST", "BEST"] = "LATEST",
    *,
    data: str | None = None,
    check: bool = True,
) -> Report:
    """Accuracy and NLL of the peers and the ensemble of a run on one split; for the arguments see :func:`open_run`.

    Raises:
        RecipeError, DataError, CheckpointError: as in :func:`open_run`.
    """
    run = open_run(folder, pointer, data=data, check=check, splits=(split,))
    batches = eval_loader(run.recipe, run.data, split_of(run.data, split), run.device)
    return evaluate(run.cohort, batches, names=run.recipe.names, precision=precision(run))


def precision(run: OpenRun) -> torch.autocast:
    """The precision of training, so that metrics match those of training."""
    warn_if_slow(run.recipe.train.precision, run.device.type)
    half = HALF.get(run.recipe.train.precision)
    return torch.autocast(run.device.type, half, enabled=half is not None)


def recipe_path(folder: Path) -> Path:
    """The path of the recipe of a run; ``RecipeError`` if the folder is not a run."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(f"{folder} is not a run: it has no recipe.yaml")
    return path


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a run."""
    return Recipe.read(recipe_path(folder))


def check_outside_of_data(section: DataSection, folder: Path) -> None:
    """Refuse to write into the folder of the images, where files could be read as images later."""
    data = Path(without_kind(section.name)[1]).expanduser()
    if not is_place(section.name) or not data.is_dir() or not folder.resolve().is_relative_to(data.resolve()):
        return
    beside = os.path.relpath(data.resolve().parent / folder.resolve().relative_to(data.resolve()))
    raise RecipeError(f"{folder} is inside of the data, {clean(data)}; a folder outside is accepted: --out {beside}")


def longer(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe; if it extends an ended run by more epochs, the recipe that trains the remaining ones."""
    if not (folder / "report.json").is_file():
        return recipe
    known = read_recipe(folder)
    return recipe.at_home(known).continued(known).model_copy(update={"data": recipe.data})


def resumed(recipe: Recipe, folder: Path) -> tuple[Recipe, DataSection]:
    """The recipe to resume a run with, and the data section with the current path of the data: that of ``recipe`` if it
    differs from the path in the recipe of the run, otherwise the path that the run used.
    """
    if not (folder / "recipe.yaml").is_file():
        return recipe, recipe.data
    known = read_recipe(folder)
    same = recipe.at_home(known)
    if recipe.data == known.data:
        return same, there(section_of(same, folder), folder)
    return same, known.data if absolute(recipe.data) == absolute(known.data) else recipe.data


def _before(recipe: Recipe) -> list[str]:
    """Other valid checksums in checkpoints of a run: before an extension, and those that include the data path."""
    known = [recipe] if recipe.before is None else [recipe, recipe.before]
    return [checksum for one in known for checksum in (one.digest, one.placed_digest)]


def check_same(recipe: Recipe, folder: Path) -> None:
    """Raise RecipeError, with the differences, if a run has another recipe that this one does not continue."""
    known = read_recipe(folder)
    recipe = recipe.at_home(known)
    if recipe.before is not None and not recipe.before.differences(known):
        return
    if differences := recipe.differences(known):
        raise RecipeError("\n".join([f"{folder} is a run of another recipe:", *(f"  {line}" for line in differences)]))
