"""Batches for training and evaluation; each depends only on the seed and its position in the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from metamixer.core.seeding import generator
from metamixer.core.types import Batch
from metamixer.data.augment import Augment, Scale, normalise
from metamixer.data.class_sampling import ClassBatches, CompanionTable, balanced_order
from metamixer.data.errors import DataError
from metamixer.data.files.folder_images import FolderImages, shards_of
from metamixer.data.files.sharded import Shards
from metamixer.data.files.streaming import Request, Stream
from metamixer.data.image_set import Device, ImageSet
from metamixer.data.local_order import local_order, within_buffers


@dataclass(frozen=True, eq=False)
class TrainLoader:
    """Augmented training batches; batch ``k`` of epoch ``e`` is a function of the seed, ``e`` and ``k`` alone.

    The order is seeded by the epoch, everything else by epoch and batch. So a run resumes in the middle of an epoch
    without a saved state, and without drawing the batches before.

    The order of images in shards is local: shards in random order are cut into buffers of whole batches, and each
    buffer is shuffled; companions come from the same buffer.

    An incomplete last batch is dropped, unless it is the only one. Images on disk (:class:`FolderImages`) are decoded
    by worker processes and augmented as images in memory are; a random crop is taken from the full pixels of the file.

    Args:
        images: the training images; those on an accelerator are gathered there.
        augment: the augmentation.
        mean: mean of each channel, where 1 is white, as in ``Data.mean``.
        std: standard deviation of each channel, as in ``Data.std``.
        batch_size: images in a batch, at least 1.
        seed: seed of the order, the augmentation and the companions.
        companions: also return for each image another one of its class, augmented independently.
        device: device of the batches. Images in memory are augmented on the device that holds their pixels.
        workers: number of processes that decode images on disk and augment images one by one; the batches do not depend
            on it. 0: this process.
        views: number of independent augmentations of each image, so that each peer can see its own; the first one is
            ``Batch.images``. 1: all peers see the same.
        per_class: images of each class in a batch (:class:`ClassBatches`), so that contrastive losses find positives;
            the number of batches in an epoch stays the same. None: every image once, in random order.
        sampler: ``shuffle``: every image once in an epoch; ``balanced``: the same number of images of each class, in
            the same number of batches (:func:`~metamixer.data.class_sampling.balanced_order`).
        share: ``(number, parts)``: return only the images ``number``, ``number + parts``, ... of every batch, exactly
            as they are in the whole batch; ``Batch.whole`` has the labels of all of them.

    >>> from metamixer.data import TensorImages
    >>> images = TensorImages(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10) % 2, ("a", "b"))
    >>> loader = TrainLoader(images, Augment(), mean=[0.5], std=[0.5], batch_size=4, seed=0, companions=True)
    >>> len(loader), [batch.companions.shape[0] for batch in loader.epoch(0, start=1)]
    (2, [4])
    """

    images: ImageSet
    augment: Augment
    mean: Scale
    std: Scale
    batch_size: int
    seed: int
    companions: bool = False
    device: Device = "cpu"
    workers: int = 0
    views: int = 1
    per_class: int | None = None
    share: tuple[int, int] = (0, 1)
    sampler: Literal["shuffle", "balanced"] = "shuffle"

    def __post_init__(self) -> None:
        _check(self.images, self.batch_size, self.workers)
        if self.views < 1:
            raise DataError(f"views={self.views}: expected at least 1")
        if self.sampler not in ("shuffle", "balanced"):
            raise DataError(f"sampler={self.sampler!r}; expected 'shuffle' or 'balanced'")
        if self.sampler == "balanced" and self.per_class is not None:
            raise DataError(
                f"sampler='balanced' with per_class={self.per_class}, whose batches are balanced; expected one of both"
            )
        if min(self.batch_size, len(self.images)) < self.share[1]:
            raise DataError(
                f"batches of {min(self.batch_size, len(self.images))} images cannot be shared among {self.share[1]} "
                "processes; expected larger batches or fewer processes"
            )
        _ = self._classes  # says now what does not fit

    def __len__(self) -> int:
        """Batches in an epoch."""
        return max(1, len(self.images) // self.batch_size)

    @property
    def class_counts(self) -> list[int]:
        """Number of images of each class."""
        return torch.bincount(self.images.labels.cpu(), minlength=len(self.images.classes)).tolist()

    @property
    def reading(self) -> Literal["memory", "augment", "device", "disk", "workers"]:
        """Where batches are prepared: by this process, so that each step waits for them, from ``memory``, with more to
        ``augment`` than crops and flips, or from ``disk``; or in parallel to the step, on the ``device`` or by
        ``workers``.
        """
        if self.workers and (isinstance(self.images, FolderImages) or self.augment.changes):
            return "workers"
        if isinstance(self.images, FolderImages):
            return "disk"
        if self.augment.changes:
            return "augment"
        return "memory" if torch.device(self.device).type == "cpu" else "device"

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on, bitwise equal to those of the whole epoch."""
        if not 0 <= start <= len(self):
            raise DataError(f"an epoch has {len(self)} batches, none to start from at {start}")
        rows, table = self._order(epoch)
        requests = [self._request(epoch, number, rows[number], table) for number in range(start, len(self))]
        for request, (shown, others) in zip(requests, self._stream.read(requests), strict=True):
            images, *more = map(self._normalised, shown)
            labels = self.images.labels[request.rows].to(self.device, non_blocking=True)
            whole = None
            if self.share[1] > 1:
                whole = self.images.labels[rows[request.number]].to(self.device, non_blocking=True)
            companions = None if others is None else self._normalised(others)
            yield Batch(images, labels, companions, (images, *more) if more else None, whole)

    def shared(self, number: int, parts: int) -> TrainLoader:
        """The loader of one of ``parts`` processes."""
        return self if parts == 1 else replace(self, share=(number, parts))

    def _order(self, epoch: int) -> tuple[Sequence[Tensor], CompanionTable]:
        """The image indices of every batch, and the table that their companions are drawn from."""
        draw, labels, table = generator(self.seed, "order", epoch), self.images.labels, None
        if self._classes is not None:
            return self._classes.draw(len(self), draw).unbind(), self._table
        if self.sampler == "balanced":
            order = balanced_order(labels, draw)
        elif (shards := shards_of(self.images)) is not None:
            images = self.batch_size * _batches(shards, self.batch_size)
            order = local_order(torch.from_numpy(shards.shard)[self.images.rows], images, draw)  # type: ignore[attr-defined]
            table = CompanionTable(within_buffers(labels, order, images)) if self.companions else None
        else:
            order = torch.randperm(len(labels), generator=draw)
        return torch.split(order, self.batch_size)[: len(self)], table or self._table

    def _request(self, epoch: int, number: int, rows: Tensor, table: CompanionTable) -> Request:
        others, own = None, slice(self.share[0], None, self.share[1])
        if self.companions:
            others = table.draw(rows, generator(self.seed, "companions", epoch, number))[own]
        return Request(
            rows[own],
            others,
            self.augment,
            self.seed,
            epoch,
            number,
            self.views,
            again="places" if self.sampler == "balanced" else "batches" if self.per_class else "never",
            part=(*self.share, len(rows)),
            buffer=number // _batches(shards_of(self.images), self.batch_size),
        )

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalise(pixels.to(self.device, non_blocking=True), *self._scale)

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        return _scale(self.mean, self.std, self.device)

    @cached_property
    def _classes(self) -> ClassBatches | None:
        if self.per_class is None:
            return None
        return ClassBatches(self.images.labels, self.images.classes, self.batch_size, self.per_class)

    @cached_property
    def _table(self) -> CompanionTable:
        return CompanionTable(self.images.labels)

    @cached_property
    def _stream(self) -> Stream:
        if self.reading == "workers":
            return Stream(self.images.to("cpu"), self.workers, torch.device(self.device).type == "cuda")
        return Stream(self.images)


@dataclass(frozen=True, eq=False)
class EvalLoader:
    """Normalised batches of all images in order, the last one incomplete; can be iterated any number of times.

    Args:
        images: the images of a split.
        mean: mean of each channel of the *training* images.
        std: standard deviation of each channel of the training images.
        batch_size: images in a batch.
        device: device of the batches.
        workers: number of processes that decode images on disk.
        share: ``(number, parts)``: return only the batches ``number``, ``number + parts``, ...

    >>> from metamixer.data import TensorImages
    >>> images = TensorImages(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10) % 2, ("a", "b"))
    >>> [len(batch) for batch in EvalLoader(images, mean=[0.5], std=[0.5], batch_size=4)]
    [4, 4, 2]
    """

    images: ImageSet
    mean: Scale
    std: Scale
    batch_size: int = 256
    device: Device = "cpu"
    workers: int = 0
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        _check(self.images, self.batch_size, self.workers)

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._rows)

    def shared(self, number: int, parts: int) -> EvalLoader:
        """The loader of one of ``parts`` processes: every ``parts``-th batch."""
        return self if parts == 1 else replace(self, share=(number, parts))

    @property
    def _rows(self) -> Sequence[Tensor]:
        return torch.split(torch.arange(len(self.images)), self.batch_size)[self.share[0] :: self.share[1]]

    def __iter__(self) -> Iterator[Batch]:
        """The batches, without companions."""
        rows = self._rows
        each = _batches(shards_of(self.images), self.batch_size)
        read = self._stream.read([Request(part, buffer=number // each) for number, part in enumerate(rows)])
        for part, ((images,), _) in zip(rows, read, strict=True):
            yield Batch(
                normalise(images.to(self.device, non_blocking=True), *self._scale),
                self.images.labels[part].to(self.device, non_blocking=True),
            )

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        return _scale(self.mean, self.std, self.device)

    @cached_property
    def _stream(self) -> Stream:
        workers = self.workers if isinstance(self.images, FolderImages) else 0
        return Stream(self.images, workers, torch.device(self.device).type == "cuda")


def _batches(shards: Shards | None, batch_size: int) -> int:
    """The batches of a buffer."""
    return 1 if shards is None else max(1, shards.buffer // batch_size)


def _scale(mean: Scale, std: Scale, device: Device) -> tuple[Tensor, Tensor]:
    shift, scale = torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32)
    if not bool(shift.isfinite().all()) or not bool((scale.isfinite() & (scale > 0)).all()):
        raise DataError(f"mean={shift.tolist()}, std={scale.tolist()}: expected finite numbers and, for std, above 0")
    return shift.to(device), scale.to(device)


def _check(images: ImageSet, batch_size: int, workers: int) -> None:
    if not len(images):
        raise DataError("no images to make batches of")
    if batch_size < 1 or workers < 0:
        raise DataError(f"batch_size={batch_size}, workers={workers}: expected at least 1 and at least 0")
