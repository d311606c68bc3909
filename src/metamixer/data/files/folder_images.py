"""A set of images on disk, decoded each time they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metamixer.data.files.image_file import WHITE, Crop, Fit, read_image
from metamixer.data.files.picture import Source
from metamixer.data.files.sharded import Fetched, Shards
from metamixer.data.files.shards import StoredImages
from metamixer.data.image_set import Device, ImageSet, check_labels


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Images on disk, resized to one size.

    Args:
        files: the files or :class:`~metamixer.data.files.sharded.Shards`; may contain more than the images of the set.
        rows: ``(N,)`` int64, the position of each image of the set in ``files``.
        labels: ``(N,)`` int64.
        classes: the name of every class.
        channels: number of channels.
        size: height and width of the resized images.
        fit, white, bits: see :func:`metamixer.data.read_image`; random crops do not use ``fit``.
        part: name of the set in messages about images without a path.
        stored: decoded images that are read instead of files; None: all files are decoded.

    Raises:
        DataError: a label is not a class, or the numbers of labels and images differ.
    """

    files: Sequence[Source]
    rows: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    fit: Fit = "crop"
    white: int = WHITE
    bits: int = 8
    part: str = "image"
    stored: StoredImages | None = None

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.rows), self.classes)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the pixels: float32 with 16 bits, else uint8."""
        return torch.float32 if self.bits == 16 else torch.uint8

    def fetch(self, indices: Tensor) -> Tensor:
        """Read images in the form used for evaluation: ``(B,)`` int64 -> ``(B, C, H, W)`` of :attr:`dtype`.

        Raises:
            ImageError: a file cannot be read; the message names the first one.
        """
        return self._images(indices, [None] * len(indices))

    def crops(self, indices: Tensor, crops: Sequence[Crop]) -> Tensor:
        """Read a resized crop of each image: ``(B,)`` int64 and B crops -> ``(B, C, H, W)`` of :attr:`dtype`."""
        return self._images(indices, crops)

    def needed(self, *indices: Tensor | None, crop: bool) -> list[int]:
        """The rows of images whose files must be read, each once: all but those stored in the required form."""
        rows = self.rows[torch.cat([each for each in indices if each is not None])].tolist()
        stored = None if self.stored is None or self.stored.whole == crop else self.stored
        return sorted({row for row in rows if stored is None or stored.places[row] < 0})

    def with_contents(self, contents: Mapping[int, bytes]) -> FolderImages:
        """The set with the given contents of files, by row, in memory."""
        assert isinstance(self.files, Shards)  # noqa: S101
        return replace(self, files=Fetched(self.files, contents))

    def _images(self, indices: Tensor, crops: Sequence[Crop | None]) -> Tensor:
        if isinstance(self.files, Shards) and self.files.afar:
            return self.with_contents(self.files.read(self.needed(indices, crop=None not in crops)))._images(
                indices, crops
            )
        rows = self.rows[indices].tolist()
        if self.stored is None:
            return torch.stack([self.image(row, crop) for row, crop in zip(rows, crops, strict=True)])
        layout = torch.channels_last  # as images are stored
        found = torch.empty(len(rows), self.channels, *self.size, dtype=self.dtype, memory_format=layout)
        for place, (row, crop) in enumerate(zip(rows, crops, strict=True)):
            if not self.stored.read(row, crop, found[place : place + 1]):
                found[place] = self.image(row, crop)
        return found

    def subset(self, indices: Tensor) -> FolderImages:
        """The set of the images ``indices``, in that order."""
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def to(self, device: Device) -> FolderImages:
        """The set itself, because it holds no pixels."""
        return self

    def image(self, row: int, crop: Crop | None = None) -> Tensor:
        """Decode file ``row``, or a crop of it, as ``(C, H, W)``; ``ImageError`` if it cannot be read."""
        name = called(self.files, row, self.part)
        options: dict[str, Any] = {"fit": self.fit, "white": self.white, "bits": self.bits}
        return torch.from_numpy(read_image(self.files[row], self.channels, self.size, crop, name, **options))


def called(files: Sequence[Source], row: int, part: str) -> str:
    """Name of file ``row`` in messages, if it has no path."""
    return files.name(row) if isinstance(files, Shards | Fetched) else f"{part} image {row}"


def shards_of(images: ImageSet) -> Shards | None:
    """The shards that hold the images; None if they are not in shards."""
    files = images.files if isinstance(images, FolderImages) else None
    return files if isinstance(files, Shards) else None
