"""Images on disk, decoded when a batch asks for them: for folders that do not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metamixer.datasets.decode import Box, Crop, Source, read_image
from metamixer.datasets.images import Device
from metamixer.seeds import generator


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Images on disk, one size for all.

    Args:
        files: where the images are; may hold more than the set.
        rows: ``(N,)`` int64, the position of each image of the set in ``files``.
        labels: ``(N,)`` int64.
        classes: the name of every class.
        channels: 1 or 3.
        size: height and width that every image is brought to.
        area: the least and largest share of an image that a training crop covers.
    """

    files: Sequence[Source]
    rows: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    area: tuple[float, float] = (0.08, 1.0)

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, indices: Tensor) -> Tensor:
        """The largest centred part of each image, resized: ``(B,)`` int64 -> ``(B, C, H, W)`` uint8.

        Raises:
            ImageError: names the first file that cannot be read.
        """
        return torch.stack([self._read(index, None) for index in indices.tolist()])

    def crops(self, indices: Tensor, seed: int, *purpose: str | int) -> Tensor:
        """A random part of each image, resized: ``(B,)`` int64 -> ``(B, C, H, W)`` uint8.

        The Inception crop (Szegedy et al., arXiv 1409.4842): a random share of the area, a ratio of the sides
        from 3:4 to 4:3. Seeded for every image by ``purpose`` and its index, so that it matters not which
        process draws.
        """
        return torch.stack(
            [self._read(index, random_crop(self.area, generator(seed, *purpose, index))) for index in indices.tolist()]
        )

    def subset(self, indices: Tensor) -> FolderImages:
        """The set of the images ``indices``, in that order."""
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def to(self, device: Device) -> FolderImages:
        """The set itself: it holds no pixels."""
        return self

    def _read(self, index: int, crop: Crop | None) -> Tensor:
        row = int(self.rows[index])
        return torch.from_numpy(read_image(self.files[row], self.channels, self.size, crop, name=f"image {row}"))


def random_crop(area: tuple[float, float], draw: torch.Generator) -> Crop:
    """Ten tries to place a part of a random share of the area and a random ratio; else the whole image.

    >>> box = random_crop((0.25, 0.25), torch.Generator().manual_seed(0))(100, 100)
    >>> round((box[2] - box[0]) * (box[3] - box[1]))
    2500
    """
    tries = torch.rand(10, 4, generator=draw, dtype=torch.float64).tolist()

    def crop(width: int, height: int) -> Box:
        for share, stretch, x, y in tries:
            pixels = width * height * (area[0] + share * (area[1] - area[0]))
            ratio = math.exp((2 * stretch - 1) * math.log(4 / 3))
            w, h = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
            if w <= width and h <= height:
                left, top = x * (width - w), y * (height - h)
                return left, top, left + w, top + h
        return 0, 0, width, height

    return crop


@dataclass(frozen=True, eq=False)
class Request:
    """A batch to read: image indices, those of the companions or None, and what seeds the crops.

    Without an epoch the images are read as they are evaluated. ``views``: how many crops of every image. ``again``: an
    image may come in several batches of an epoch, and has other crops in each.
    """

    rows: Tensor
    others: Tensor | None = None
    seed: int = 0
    epoch: int | None = None
    number: int = 0
    views: int = 1
    again: bool = False


Read = tuple[tuple[Tensor, ...], Tensor | None]
"""The images of a batch, once for every view, and the companions: each ``(B, C, H, W)`` uint8."""


@dataclass(frozen=True, eq=False)
class _Reader(Dataset[Read]):
    images: FolderImages

    def __getitem__(self, request: Request) -> Read:
        if request.epoch is None:
            return (self.images.fetch(request.rows),), None
        place = (request.epoch, request.number) if request.again else (request.epoch,)
        purposes = [("crop", *place), *(("view crop", view, *place) for view in range(1, request.views))]
        shown = tuple(self.images.crops(request.rows, request.seed, *purpose) for purpose in purposes)
        if request.others is None:
            return shown, None
        purpose = ("companion crop", request.epoch, request.number)
        return shown, self.images.crops(request.others, request.seed, *purpose)


@dataclass(frozen=True, eq=False)
class Stream:
    """Reads batches from disk in the order of the requests, by this process or by workers that stay alive.

    A worker is handed whole requests that say all that matters, so that neither the number of workers nor the
    epochs read before change a pixel.
    """

    images: FolderImages
    workers: int = 0

    def read(self, requests: list[Request]) -> Iterator[Read]:
        """For every request images and companions, on the CPU."""
        reader = _Reader(self.images)
        if self.workers == 0:
            return (reader[request] for request in requests)
        requests_now, loader = self._pipe
        requests_now[:] = requests
        return iter(loader)

    @cached_property
    def _pipe(self) -> tuple[list[Request], DataLoader[Read]]:
        requests: list[Request] = []
        loader = DataLoader(
            _Reader(self.images),
            sampler=requests,
            batch_size=None,
            collate_fn=_unchanged,  # type: ignore[arg-type]
            num_workers=self.workers,
            prefetch_factor=2,  # batches that each worker reads ahead, while the step before them computes
            persistent_workers=True,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        return requests, loader


def _unchanged(batch: Read) -> Read:
    return batch
