"""Sets of labelled images, the common interface of all data sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metamixer.core.progress import watched
from metamixer.data.errors import DataError

Device = torch.device | str
Numbers = tuple[float, ...]
BARS = 128
"""Grey level of the bars beside an image with another aspect ratio."""


class ImageSet(Protocol):
    """N labelled images of the same size, in memory or on disk."""

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64 class indices on the CPU."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of every class."""

    @property
    def channels(self) -> int:
        """1 (grey), 3 (red, green, blue) or more."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the pixels: uint8, or float32 from 0 to 255 if 16 bits are kept."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor) -> Tensor:
        """Images in the form used for evaluation: ``(B,)`` int64 indices on the CPU -> ``(B, C, H, W)``."""

    def subset(self, indices: Tensor) -> Self:
        """The set of the images ``indices``, in that order."""

    def to(self, device: Device) -> Self:
        """The same set with its pixels on ``device``, if it holds any."""


@dataclass(frozen=True, eq=False)
class TensorImages:
    """Images in one tensor, on the CPU or on an accelerator.

    Args:
        images: ``(N, C, H, W)`` uint8, or float32 from 0 to 255.
        labels: ``(N,)`` int64 on the CPU.
        classes: the name of every class.
        files: the file of each image; None if there are no files.

    Raises:
        DataError: the shapes do not match, a value is out of range, or a label is not a class.

    >>> shades = TensorImages(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0]), ("a", "b"))
    >>> len(shades), shades.fetch(torch.tensor([2, 0])).shape
    (3, torch.Size([2, 1, 8, 8]))
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    files: tuple[Path, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype not in (torch.uint8, torch.float32) or self.images.ndim != 4:
            raise DataError(
                f"images are {self.images.dtype} {tuple(self.images.shape)}; expected (N, C, H, W) uint8, or float32 "
                "from 0 to 255"
            )
        if self.images.dtype == torch.float32 and len(self.images):
            low, high = (float(each) for each in self.images.aminmax())
            if not 0 <= low <= high <= 255:
                raise DataError(f"float32 images go from {low:g} to {high:g}; expected values from 0 to 255")
        check_labels(self.labels, len(self.images), self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """1 (grey), 3 (red, green, blue) or more."""
        return self.images.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the pixels: uint8 or float32."""
        return self.images.dtype

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[2], self.images.shape[3]

    def fetch(self, indices: Tensor) -> Tensor:
        """``(B,)`` int64 -> ``(B, C, H, W)`` of :attr:`dtype`, on the device of the images."""
        return self.images.index_select(0, indices.to(self.images.device, non_blocking=True))

    def subset(self, indices: Tensor) -> TensorImages:
        """The set of the images ``indices``, in that order; the pixels are copied."""
        files = None if self.files is None else tuple(self.files[index] for index in indices.tolist())
        return replace(self, images=self.fetch(indices), labels=self.labels[indices], files=files)

    def to(self, device: Device) -> TensorImages:
        """The same set with its pixels on ``device``; the labels stay on the CPU."""
        return replace(self, images=self.images.to(device))


def check_labels(labels: Tensor, count: int, classes: Sequence[str]) -> None:
    """Check that labels are ``(count,)`` int64 class indices.

    Raises:
        DataError: they are not.
    """
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise DataError(
            f"labels are {labels.dtype} {tuple(labels.shape)}; expected ({count},) int64, one for every image"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise DataError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, "
            f"but the {len(classes)} classes are numbered from 0 to {len(classes) - 1}"
        )


def evenly_spaced(count: int, most: int | None = None) -> Tensor:
    """``(min(count, most),)`` int64: evenly spaced rows of ``count``, including the first and the last.

    Folders are sorted by class, so the first rows would contain few classes.

    >>> evenly_spaced(9, 3).tolist(), evenly_spaced(2).tolist()
    ([0, 4, 8], [0, 1])
    """
    wanted = count if most is None else min(count, most)
    return torch.linspace(0, count - 1, wanted, dtype=torch.float64).round().long()


def statistics(images: Tensor | ImageSet, limit: int = 10_000) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of every channel, for normalisation. Call it with training images only.

    uint8 values are counted in a histogram, which is exact; other values are summed in float64. A sum in float32 would
    not be exact for more than 16 million pixels.

    Args:
        images: ``(N, C, H, W)`` uint8 or float32, or a set of images.
        limit: the largest number of images to use; they are evenly spaced.

    Returns:
        Two tuples of C values in units of the full range, 255 = 1. The deviation is at least 1/255 (1/65535 for float
        images), so that one can divide by it.

    >>> statistics(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    ((0.5,), (0.5,))
    """
    chosen = evenly_spaced(len(images), limit)
    if images.dtype != torch.uint8:
        return _deep_statistics(images, chosen)
    counts = torch.zeros(images.shape[1] if isinstance(images, Tensor) else images.channels, 256, dtype=torch.float64)
    for part in watched(torch.split(chosen, 64), "measuring mean and deviation"):
        pixels = images[part.to(images.device)] if isinstance(images, Tensor) else images.fetch(part)
        for channel, count in enumerate(counts):
            count += torch.bincount(pixels[:, channel].flatten(), minlength=256).cpu()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    variance = (counts * (values - mean[:, None]).square()).sum(1) / counts.sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp_min(1 / 255).tolist())


def _deep_statistics(images: Tensor | ImageSet, chosen: Tensor) -> tuple[Numbers, Numbers]:
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in torch.split(chosen, 64):
        pixels = images[part.to(images.device)] if isinstance(images, Tensor) else images.fetch(part)
        values = pixels.double().cpu() / 255
        count += values.numel() // values.shape[1]
        total, squares = total + values.sum((0, 2, 3)), squares + values.square().sum((0, 2, 3))
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 65535)
    return tuple(mean.tolist()), tuple(deviation.tolist())


def conform(images: Tensor, size: tuple[int, int] | None, channels: int | None, fit: str = "crop") -> Tensor:
    """Convert images to another size or number of channels: ``(N, C, H, W)`` uint8 -> ``(N, c, h, w)`` uint8.

    Images are resized (bilinear, antialiased) according to ``fit`` as in :func:`metamixer.data.read_image`. Grey is
    repeated for three channels; colour becomes grey by ITU-R BT.601. None keeps the size or the channels.
    """
    if channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1).contiguous()
    elif channels == 1 and images.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        images = torch.cat([(part * weights).sum(1, keepdim=True).round().byte() for part in torch.split(images, 4096)])
    H, W = images.shape[2:]
    if size is None or size == (H, W):
        return images
    if fit == "letterbox":
        scale = max(H / size[0], W / size[1])
        inner = min(size[0], max(1, round(H / scale))), min(size[1], max(1, round(W / scale)))
        top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        bars = [left, size[1] - inner[1] - left, top, size[0] - inner[0] - top]
        return F.pad(conform(images, inner, None, "squash"), bars, value=BARS)
    scale = min(H / size[0], W / size[1])
    h, w = (H, W) if fit == "squash" else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    images = images[:, :, (H - h) // 2 : (H - h) // 2 + h, (W - w) // 2 : (W - w) // 2 + w]
    return torch.cat(
        [
            F.interpolate(part.float(), size, mode="bilinear", antialias=True).round().clamp(0, 255).byte()
            for part in torch.split(images, 1024)
        ]
    )


def overlap(first: TensorImages, second: TensorImages) -> int:
    """The number of images of ``second`` that are also in ``first``, pixel for pixel."""

    def prints(images: Tensor) -> list[bytes]:
        every = watched(images.cpu().numpy(), "looking for copies")
        return [blake2b(image.tobytes(), digest_size=16).digest() for image in every]

    known = set(prints(first.images))
    return sum(digest in known for digest in prints(second.images))


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Convert a side length or (height, width) to (height, width).

    >>> pair(32), pair((24, 32))
    ((32, 32), (24, 32))
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise DataError(f"image size {size!r}; accepted: a side such as 32, or (height, width)")
    return sides[0], sides[1]
