"""Check that networks, loss and data fit together, before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.image_types import type_conflict
from metamixer.cohort.peer_exchange import PeerExchange
from metamixer.core.labels import wrong_labels
from metamixer.core.seeding import derive
from metamixer.core.types import Batch, Outputs
from metamixer.losses.base import Loss
from metamixer.training.distributed import ProcessGrid
from metamixer.training.optimizer_step import TrainingError
from metamixer.training.out_of_memory import is_of_memory
from metamixer.training.settings import TrainSettings

_LARGER = "accepted: larger batches, fewer micro_batches, or a loader with drop_last=True"


def check_parts(cohort: Cohort, loss: nn.Module, grid: ProcessGrid, settings: TrainSettings) -> None:
    """Refuse combinations that the device and the processes do not support, before anything is loaded.

    Raises:
        TrainingError: the combination is not supported; the message says what is accepted.
    """
    kind, micro_batches = grid.device.type, settings.micro_batches
    if settings.update == "alternating" and (cohort.branched or cohort.parallel == "threads" or grid.groups > 1):
        raise TrainingError(
            "update='alternating' trains separate networks one after the other, without threads, peer groups or a "
            "shared trunk; accepted is update='joint'"
        )
    if cohort.parallel == "threads" and (kind != "cpu" or grid.world > 1):
        raise TrainingError(
            f"parallel='threads' shares the cores of one process on a CPU; here are {grid.world} on {kind}: "
            "accepted is parallel='none'"
        )
    if cohort.records_cuda_graphs and kind == "cuda" and micro_batches > 1:
        raise TrainingError(
            f"compile={cohort.compiled!r} with micro_batches={micro_batches}: gradients that add up do not stay in the "
            "memory of a CUDA graph; accepted are compile='default' or micro_batches=1"
        )
    if kind != "cuda" and any(isinstance(module, nn.SyncBatchNorm) for module in cohort.modules()):
        raise TrainingError(f"batch norm over all processes needs CUDA devices, this is {kind}")
    parts = grid.shares * micro_batches
    if settings.mixing_groups is not None and settings.mixing_groups % parts:
        raise TrainingError(
            f"mixing_groups={settings.mixing_groups}: accepted are multiples of {parts}, because {grid.shares} shares "
            f"of {micro_batches} micro-batches each cannot exchange samples"
        )
    if grid.groups > 1:
        if settings.precision == "16":
            raise TrainingError(
                f"precision='16' with peer_groups={grid.groups}: gradients have one scale for all peers; accepted are "
                "precision='bf16' or '32', or peer_groups=1"
            )
        _check_groups(cohort, loss, grid)


def _check_groups(cohort: Cohort, loss: nn.Module, grid: ProcessGrid) -> None:
    if unfit := sorted({"stages", "trunk"} & set(Loss.of(loss).needs)):
        raise TrainingError(
            f"peer_groups={grid.groups}: {type(loss).__name__} looks at the {unfit[0]} of all peers, and only logits "
            "and pooled features travel; accepted is peer_groups=1"
        )
    try:
        cohort.owners(grid.groups)
    except ValueError as error:
        raise TrainingError(f"peer_groups={grid.groups}: {error}; accepted is peer_groups=1") from error


def dry_run(
    cohort: Cohort,
    loss: nn.Module,
    batch: Batch,
    grid: ProcessGrid,
    names: Sequence[str],
    seed: int,
    classes: int | None = None,
) -> int:
    """Move cohort and loss to their device, and run every peer on two images in evaluation mode.

    Args:
        cohort: the cohort; it then only keeps the peers of this process.
        loss: the loss; its ``setup`` is called with a seed.
        batch: the first batch.
        grid: device and launched processes.
        names: names of the peers.
        seed: seed of the weights of the loss.
        classes: number of classes of the data, or None.

    Returns:
        The number of classes of the peers.

    Raises:
        TrainingError: a peer cannot take the images, the number of classes is wrong, or an image is not finite.
    """
    if grid.groups > 1:
        features = "features" in Loss.of(loss).needs
        cohort.spread(PeerExchange(cohort.owners(grid.groups), grid.group, grid.across, features))
    if any(isinstance(module, nn.Conv2d) for module in cohort.modules()):
        cohort.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cohort.to(grid.device)
    if not len(batch):
        raise TrainingError("the first batch has no images; accepted: at least one in each")
    if not bool(batch.images.isfinite().all()):
        raise TrainingError("there are images with values that are infinite or NaN in the first batch")
    training = cohort.training
    cohort.eval()
    try:
        outputs = _run(cohort, batch, grid, names)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    finally:
        cohort.train(training)
    known = outputs.logits.shape[-1]
    if known < 2:
        raise TrainingError("the peers have outputs for 1 class; accepted: two classes or more")
    if classes is not None and known != classes:
        raise TrainingError(f"the peers ({', '.join(names)}) have outputs for {known} classes, the data have {classes}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "loss"))
        try:
            Loss.of(loss).setup(outputs)
        except ValueError as error:
            raise TrainingError(str(error)) from error
    loss.to(grid.device)
    return known


def check_learning(
    cohort: Cohort, first: Batch, smallest: int, grid: ProcessGrid, micro_batches: int, names: Sequence[str]
) -> None:
    """Run every peer that learns in training mode, in which some run more layers, on the smallest number of images.

    Args:
        cohort: the peers of this process; modes, statistics and random states do not change.
        first: a batch.
        smallest: size of the smallest batch.
        grid: device and precision.
        micro_batches: number of parts of a batch.
        names: names of the peers.

    Raises:
        TrainingError: there are parts without images, or a peer cannot learn from such images, or from a single one.
    """
    if smallest < micro_batches:
        raise TrainingError(f"the smallest batch has {smallest} images for {micro_batches} micro-batches; {_LARGER}")
    images = first.images[: min(2, smallest // micro_batches)]
    kept = [buffer.clone() for buffer in cohort.buffers()]
    training = cohort.training
    cohort.train()
    try:
        for index in sorted(set(cohort.here) & set(cohort.learners)):
            with torch.random.fork_rng(devices=[grid.device] if grid.device.type == "cuda" else []), grid.autocast():
                _learn(cohort.peers[index], images, names[index])
    finally:
        cohort.train(training)
        for buffer, before in zip(cohort.buffers(), kept, strict=True):
            buffer.copy_(before)


@torch.no_grad()
def _learn(peer: nn.Module, images: Tensor, name: str) -> None:
    try:
        peer(images)
    except (RuntimeError, ValueError, AssertionError, MemoryError) as error:
        if is_of_memory(error):
            return  # the first step says what fits
        if "more than 1 value per channel" in str(error) and len(images) == 1:
            raise TrainingError(
                f"peer {name} cannot learn from one image: batch norm has one value for a channel, and the smallest "
                f"batch or micro-batch has one image; {_LARGER}"
            ) from error
        raise TrainingError(f"peer {name} cannot learn from images of {_shape(images)}: {error}") from error


def _shape(images: Tensor) -> str:
    return "×".join(str(size) for size in images.shape[1:])


def wrong_label(batch: Batch, classes: int) -> str:
    """A message about invalid labels of the whole batch; empty if they are valid. Synchronizes."""
    labels = batch.labels if batch.whole is None else batch.whole
    return wrong_labels(labels.cpu(), classes)


@torch.no_grad()
def _run(cohort: Cohort, batch: Batch, grid: ProcessGrid, names: Sequence[str]) -> Outputs:
    images = batch.images[:2].to(grid.device)
    with grid.autocast():
        for index in cohort.here:
            try:
                cohort.peers[index](images)
            except (RuntimeError, ValueError, AssertionError) as error:
                why = type_conflict(cohort.peers[index], images) or error
                raise TrainingError(f"peer {names[index]} cannot take images of {_shape(images)}: {why}") from error
        outputs: Outputs = cohort(images)
    return outputs
