"""Training and validation data of any type as batches on the device of a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from metamixer.core.seeding import derive
from metamixer.core.types import Batch
from metamixer.training.distributed import ProcessGrid
from metamixer.training.optimizer_step import TrainingError


class Batches(Protocol):
    """Training data: the batches depend only on the epoch number, and an epoch can start at any batch.

    An optional method ``shared(number, parts)`` returns data that only read the share of a process of every batch.
    Without it every process reads whole batches and takes its share.
    """

    def __len__(self) -> int:
        """The number of batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of ``epoch`` (counted from 0), beginning with batch ``start``."""


def training_batches(given: Any, grid: ProcessGrid, seed: int) -> OnDevice:
    """The training batches of this process: its share of each batch, on its device.

    Args:
        given: :class:`Batches`, or a ``DataLoader`` or list of (images, labels).
        grid: device and processes.
        seed: seed of the order and the random numbers of a ``DataLoader``.

    Raises:
        TrainingError: the data have another type or are empty.
    """
    try:
        length = len(given)
    except TypeError as error:
        raise TrainingError(f"training data of type {type(given).__name__} have no length; {_ACCEPTED}") from error
    if not length:
        raise TrainingError(f"there is no batch to train on: the {type(given).__name__} is empty")
    if not hasattr(given, "epoch"):
        if not hasattr(given, "__iter__"):  # a Dataset
            raise TrainingError(f"a {type(given).__name__} gives single images; {_ACCEPTED}")
        given = _Seeded(given, seed)
    shared = getattr(given, "shared", None) if grid.shares > 1 else None
    parts = 1 if shared else grid.shares
    return OnDevice(shared(grid.share, grid.shares) if shared else given, grid.device, grid.share, parts)


_ACCEPTED = "accepted: a DataLoader of (images, labels), or an object with epoch(number, start) and a length"


@dataclass(frozen=True)
class OnDevice:
    """Batches of any type as :class:`Batch` on a device, reduced to the share of this process."""

    given: Any
    device: torch.device
    number: int
    parts: int

    def __len__(self) -> int:
        return len(self.given)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of ``epoch``, beginning with batch ``start``."""
        for found in self.given.epoch(epoch, start):
            batch = _batch(found)
            if len(batch) < self.parts:
                raise TrainingError(f"a batch of {len(batch)} images cannot be shared among {self.parts} processes")
            yield batch.part(self.number, self.parts).to(self.device)

    def smallest(self, first: Batch) -> int:
        """The size of the smallest batch of this process as far as known, at most that of the first batch."""
        known = getattr(self.given, "smallest", None)
        return len(first) if known is None else min(len(first), known // self.parts)


class _Seeded:
    """A ``DataLoader`` or other iterable whose order and random numbers depend only on seed and epoch.

    The generators of PyTorch are seeded: that of the sampler, and those of this process and of the workers.
    """

    def __init__(self, given: Any, seed: int) -> None:
        self.given, self.seed = given, seed

    def __len__(self) -> int:
        return len(self.given)

    @property
    def smallest(self) -> int | None:
        """The size of the smallest batch; None if unknown."""
        given = self.given
        if isinstance(given, DataLoader) and given.batch_size and isinstance(given.sampler, Sized):
            return given.batch_size if given.drop_last else len(given.sampler) % given.batch_size or given.batch_size
        return min(len(_batch(found)) for found in given) if isinstance(given, list | tuple) else None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        sampler = getattr(self.given, "sampler", None)
        if set_epoch := getattr(sampler, "set_epoch", None):
            set_epoch(epoch)
        for owner in (self.given, sampler):
            if isinstance(own := getattr(owner, "generator", None), torch.Generator):
                own.manual_seed(derive(self.seed, "order", epoch))
        with _seeded(derive(self.seed, "loader", epoch)):
            batches = iter(self.given)
        for number in range(len(self)):
            with _seeded(derive(self.seed, "batch", epoch, number)):
                try:
                    found = next(batches)
                except StopIteration:
                    raise TrainingError(
                        f"the {type(self.given).__name__} ended after {number} batches of {len(self)}; accepted: one "
                        "that gives as many as its length in every epoch"
                    ) from None
            if number >= start:
                yield found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def held_out(given: Iterable[Any], grid: ProcessGrid) -> HeldOut:
    """The validation batches; TrainingError if they can be iterated only once."""
    if isinstance(given, Iterator):
        raise TrainingError(
            f"validation data of type {type(given).__name__} can be gone through only once; accepted: a DataLoader "
            "or a list"
        )
    return HeldOut(given, grid)


class HeldOut:
    """Validation batches of any type as :class:`Batch` on a device."""

    def __init__(self, given: Iterable[Any], grid: ProcessGrid) -> None:
        self.given, self.grid = given, grid

    def __iter__(self) -> Iterator[Batch]:
        return (_batch(found).to(self.grid.device) for found in self.given)

    def __length_hint__(self) -> int:
        return length_hint(self.given)

    def shared(self) -> Iterable[Batch]:
        """The batches that this process evaluates."""
        number, parts = self.grid.share, self.grid.shares
        if parts == 1:
            return self
        if shared := getattr(self.given, "shared", None):
            return HeldOut(shared(number, parts), self.grid)
        return islice(self, number, None, parts)


def _batch(found: Any) -> Batch:
    try:
        return Batch.of(found)
    except ValueError as error:
        raise TrainingError(str(error)) from error
