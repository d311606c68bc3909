"""Read the images of each batch from disk and augment them, optionally in worker processes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, zip_longest
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metamixer.core.seeding import generator
from metamixer.data.augment import Augment
from metamixer.data.errors import ImageError, WorkerError
from metamixer.data.files.folder_images import FolderImages, shards_of
from metamixer.data.files.sharded import Shards
from metamixer.data.image_set import ImageSet


@dataclass(frozen=True, eq=False)
class Request:
    """A batch to read: indices of the images, those of the companions or None, and the augmentation.

    Without ``augment`` images are read in the form used for evaluation. ``views``: number of augmentations of every
    image. ``again``: whether an image can occur in several batches of an epoch, or also repeatedly in one batch; each
    occurrence then has another crop. ``part``: see :meth:`~metamixer.data.Augment.pixels`.
    ``buffer``: number of the buffer whose images are fetched together, if they are remote; ``contents``: the fetched
    files by row.
    """

    rows: Tensor
    others: Tensor | None = None
    augment: Augment | None = None
    seed: int = 0
    epoch: int = 0
    number: int = 0
    views: int = 1
    again: Literal["never", "batches", "places"] = "never"
    part: tuple[int, int, int] | None = None
    buffer: int = 0
    contents: Mapping[int, bytes] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Lists, because a tensor would be sent to the worker through shared memory: see _Reader.
        others = None if self.others is None else self.others.tolist()
        place = (self.augment, self.seed, self.epoch, self.number, self.views, self.again, self.part)
        return _request, (self.rows.tolist(), others, *place, self.buffer, self.contents)


def _request(rows: list[int], others: list[int] | None, *place: Any) -> Request:
    return Request(torch.tensor(rows), None if others is None else torch.tensor(others), *place)


Read = tuple[tuple[Tensor, ...], Tensor | None]
"""The images of a batch, once for every view, and the companions, each ``(B, C, H, W)``."""


@dataclass(frozen=True, eq=False)
class _Reader(Dataset[Read | ImageError]):
    images: ImageSet

    def __getitem__(self, request: Request) -> Read | ImageError:
        """The batch as a worker sends it. ImageError is returned, because torch would turn it into a traceback."""
        try:
            shown, others = self.read(request)
        except ImageError as error:
            return error
        # Otherwise the thread that sends the batch moves it to shared memory. If that is full, its exception is lost
        # together with the batch, and training would wait for the batch forever.
        for images in (*shown, *(() if others is None else (others,))):
            images.share_memory_()
        return shown, others

    def read(self, request: Request) -> Read:
        """Read and augment the batch."""
        if request.contents is not None and isinstance(self.images, FolderImages):
            here = _Reader(self.images.with_contents(request.contents))
            return here.read(replace(request, contents=None))
        if request.augment is None:
            return (self.images.fetch(request.rows),), None
        place = (request.epoch, request.number)
        again = place[:1] if request.again == "never" else place
        draw = generator(request.seed, "augment", *place)
        shown = [self._augmented(request, request.rows, draw, "crop", *again)]
        others = None
        if request.others is not None:
            others = self._augmented(request, request.others, draw, "companion crop", *place)
        for view in range(1, request.views):  # each has its own seed, so that their number does not change the others
            draw = generator(request.seed, "view", *place, view)
            shown.append(self._augmented(request, request.rows, draw, "view crop", view, *again))
        return tuple(shown), others

    def _augmented(self, request: Request, rows: Tensor, draw: torch.Generator, *purpose: str | int) -> Tensor:
        augment, images = request.augment, self.images
        assert augment is not None  # noqa: S101
        if augment.crop is None or not isinstance(images, FolderImages):
            return augment.pixels(images.fetch(rows), draw, request.part)
        number, parts, count = request.part or (0, 1, len(rows))
        # Seeded for every image, so that the crop does not depend on the process that draws it.
        which: list[tuple[int, ...]] = [(index,) for index in rows.tolist()]
        if request.again == "places":
            which = [(*one, place) for one, place in zip(which, range(number, count, parts), strict=True)]
        crops = [augment.crop.draw(generator(request.seed, *purpose, *one)) for one in which]
        return replace(augment, crop=None).pixels(images.crops(rows, crops), draw, request.part, in_place=True)


@dataclass(frozen=True, eq=False)
class Stream:
    """Reads and augments batches in the order of the requests, in this process or in persistent workers.

    A worker gets complete requests, so that pixels depend neither on the number of workers nor on earlier epochs.
    ``pinned``: batches of workers are copied to pinned memory, from which copies to a GPU are asynchronous.
    """

    images: ImageSet
    workers: int = 0
    pinned: bool = False

    def read(self, requests: list[Request]) -> Iterator[Read]:
        """Yield images and companions for every request, on the CPU or on the device of a set in memory.

        Raises:
            ImageError: a file cannot be read; the message names the first one.
            WorkerError: a worker was killed, could not be started, or has no shared memory for its batch.
        """
        if self.workers == 0:
            reader = _Reader(self.images)
            return (reader.read(request) for request in _fetched(self.images, requests))
        return self._receive(requests)

    def _receive(self, requests: list[Request]) -> Iterator[Read]:
        sampler, loader = self._pipe
        sampler.requests = requests
        try:
            for read in loader:
                if isinstance(read, ImageError):
                    raise read
                yield read
        except (RuntimeError, OSError) as error:
            if (fault := worker_fault(error)) is None:
                raise
            # A retry gets new workers. While anything references the loader, such as a traceback, torch repeatedly
            # reports the dead worker.
            self.__dict__.pop("_pipe", None)
            del loader
            raise fault from error.with_traceback(None)

    @cached_property
    def _pipe(self) -> tuple[_Sampler, DataLoader[Read | ImageError]]:
        sampler = _Sampler(self.images)
        loader = DataLoader(
            _Reader(self.images),
            sampler=sampler,
            batch_size=None,
            collate_fn=_unchanged,  # type: ignore[arg-type]
            num_workers=self.workers,
            prefetch_factor=2,  # batches that each worker reads ahead during a step
            persistent_workers=True,
            pin_memory=self.pinned,
            generator=torch.Generator(),  # so that the loader does not draw from the global one
            worker_init_fn=_own_process_group,
            # A forked worker would share the connections of fsspec's thread, and close them for it when it closes one.
            multiprocessing_context="spawn" if _afar(self.images) is not None else None,
        )
        return sampler, loader


@dataclass(eq=False)
class _Sampler:
    """The requests of an epoch, as the loader passes them to its workers."""

    images: ImageSet
    requests: Sequence[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return _fetched(self.images, self.requests)

    def __len__(self) -> int:
        return len(self.requests)


def _afar(images: ImageSet) -> Shards | None:
    """The shards whose contents this process fetches for its workers; None: workers read the images themselves."""
    shards = shards_of(images)
    return shards if shards is not None and shards.afar else None


def _fetched(images: ImageSet, requests: Sequence[Request]) -> Iterator[Request]:
    """The requests; those for remote images with their contents. The next buffer is fetched while one is in use.

    This process fetches the contents and passes them to the workers. If workers fetched them, each one would hold a
    buffer, or would request single images.
    """
    if (files := _afar(images)) is None or not isinstance(images, FolderImages):
        yield from requests
        return
    pool = ThreadPoolExecutor(1)

    def rows(some: Sequence[Request]) -> list[int]:
        crop = some[0].augment is not None and some[0].augment.crop is not None
        return images.needed(*(rows for each in some for rows in (each.rows, each.others)), crop=crop)

    buffers = [list(some) for _, some in groupby(requests, key=lambda request: request.buffer)]
    try:
        coming = [pool.submit(files.read, rows(some)) for some in buffers[:1]]
        for some, after in zip_longest(buffers, buffers[1:]):
            contents = coming.pop().result()
            coming += [] if after is None else [pool.submit(files.read, rows(after))]
            for request in some:
                yield replace(request, contents={row: contents[row] for row in rows([request])})
            del contents
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _own_process_group(worker: int) -> None:
    """Move this worker out of the process group of the run, so that it gets no signals such as that of Ctrl-C.

    The signal asks the training to finish its step, in which the death of a worker would be an error. Workers end on
    their own when the training process ends.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def _unchanged(batch: Read | ImageError) -> Read | ImageError:
    return batch


def worker_fault(error: Exception) -> WorkerError | None:
    """Convert an error of torch about a failed worker to one that explains it; None for other errors.

    torch reports a dead worker in a signal handler, so the error can occur anywhere in a training step.
    """
    text = str(error).strip()
    of_memory = "data.workers=0 decodes in the training's own process and takes the least"
    if "DataLoader worker" in text and "shared memory" in text:
        return WorkerError(
            "a process that decodes images found no room for its batch in the shared memory, /dev/shm: more of it "
            f"(docker run --shm-size=2g), fewer workers or smaller batches help; {of_memory}"
        )
    if "Too many open files" in text and ("workers" in text or "</torch_" in text):
        return WorkerError(
            f"too many open files to get batches from the processes that decode images: 'ulimit -n 4096' or {of_memory}"
        )
    if isinstance(error, OSError):
        if error.errno in (errno.EAGAIN, errno.ENOMEM):
            return WorkerError(f"processes that decode images cannot be started: {error.strerror}; {of_memory}")
        return None
    if text.startswith("DataLoader worker (pid"):
        signalled = text.partition("by signal: ")[2].rstrip(". ")
        how = f"was ended by a signal ({signalled})" if signalled else "ended before its work was done"
        return WorkerError(
            f"a process that decodes images {how}, usually because the memory was full: fewer data.workers, a smaller "
            f"data.image_size or smaller batches take less; {of_memory}"
        )
    return None
