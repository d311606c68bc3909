"""Random crop, flip and normalisation of a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metamixer.data.errors import DataError
from metamixer.data.policies import Changes
from metamixer.data.random_crop import RandomCrop

_IN_CACHE = 2**18  # values of float32
_SINGLY = 2**12
"""Images with at least this number of values are cropped and flipped one by one; smaller ones faster by batch."""
Scale = Sequence[float] | Tensor
"""One value for every channel, in units of the full range: 255 = 1."""


def normalise(images: Tensor, mean: Scale, std: Scale) -> Tensor:
    """``(pixel / 255 - mean) / std``: ``(B, C, H, W)`` from 0 to 255 -> float32 in channels-last memory format.

    >>> white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    >>> normalise(white, mean=[0.5], std=[0.25]).flatten()
    tensor([2.])
    """
    C = images.shape[1]
    mean = torch.as_tensor(mean, dtype=torch.float32, device=images.device)
    std = torch.as_tensor(std, dtype=torch.float32, device=images.device)
    if mean.shape != (C,) or std.shape != (C,):
        raise DataError(
            f"images of {C} channels, but {mean.numel()} means and {std.numel()} deviations; expected {C} of each"
        )
    B, _, H, W = images.shape
    factor, shift = 1 / (255 * std), mean / std
    # Explicitly allocated: one channel always counts as channels last, but last bits of kernels depend on its strides.
    found = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
    # On a CPU, in place for as many images as fit in its cache: a third of the memory traffic of the plain formula.
    some = max(1, _IN_CACHE // max(1, C * H * W)) if images.device.type == "cpu" else max(1, B)
    if images.stride(1) == 1 and C > 1:  # channels last: rows of W x C values, with factor and shift repeated W times
        factor, shift = factor.repeat(W), shift.repeat(W)
        rows, filled = (each.permute(0, 2, 3, 1).flatten(2) for each in (images, found))
        for part, into in zip(torch.split(rows, some), torch.split(filled, some), strict=True):
            into.copy_(part).mul_(factor).sub_(shift)
        return found
    factor, shift = factor.view(C, 1, 1), shift.view(C, 1, 1)
    for part, into in zip(torch.split(images, some), torch.split(found, some), strict=True):
        into.copy_(part.to(torch.float32, copy=True).mul_(factor).sub_(shift))
    return found


@dataclass(frozen=True)
class Augment:
    """Random crop from the padded image, random horizontal flip, further changes, and normalisation.

    The augmentation of He et al., "Deep Residual Learning", arXiv 1512.03385, section 4.2. Padding consists of black
    pixels, added before normalisation. Every image has its own offset and flip: the transforms of torchvision crop all
    images of a batch alike, and applied to single images they are about 20 times slower (docs/performance.md). Here one
    index operation selects a window for each image.

    Args:
        pad: pixels added on every side before a window of the original size is cut out. 0: no crop.
        flip: mirror each image left to right with probability 1/2. Not for digits or letters.
        pad_mode: content of the padding: ``zero`` (black) or ``reflect`` (the image mirrored at its edge).
        crop: a random resized crop instead of the window; None: the window.
        changes: further changes, drawn for each image.

    >>> images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    >>> draw = torch.Generator().manual_seed(0)
    >>> Augment(pad=1)(images, mean=[0.0] * 3, std=[1.0] * 3, generator=draw).shape
    torch.Size([2, 3, 8, 8])
    """

    pad: int = 4
    flip: bool = True
    pad_mode: Literal["zero", "reflect"] = "zero"
    crop: RandomCrop | None = None
    changes: Changes = field(default_factory=Changes)

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise DataError(f"pad={self.pad}: expected 0 or more pixels, such as 4")
        if self.pad_mode not in ("zero", "reflect"):
            raise DataError(f"pad_mode={self.pad_mode!r}; expected 'zero' or 'reflect'")
        if self.pad and self.crop is not None:
            raise DataError(f"pad={self.pad} with crop_scale; expected one of both: the crop is taken instead")

    def __call__(
        self,
        images: Tensor,
        mean: Scale,
        std: Scale,
        generator: torch.Generator,
        part: tuple[int, int, int] | None = None,
    ) -> Tensor:
        """:meth:`pixels` and :func:`normalise`: ``(B, C, H, W)`` float32, channels last, on the device of the images.

        Args:
            images, generator, part: see :meth:`pixels`.
            mean: C values, see :func:`normalise`.
            std: C values.
        """
        return normalise(self.pixels(images, generator, part), mean, std)

    def pixels(
        self,
        images: Tensor,
        generator: torch.Generator,
        part: tuple[int, int, int] | None = None,
        *,
        in_place: bool = False,
    ) -> Tensor:
        """``(B, C, H, W)`` uint8 -> the same shape and type, with each image augmented independently.

        Args:
            images: the batch, on any device.
            generator: a CPU generator for all draws, which are the same for every device.
            part: ``(number, parts, count)``: the images are every ``parts``-th one, starting at ``number``, of a batch
                of ``count`` images, and are augmented as in that batch. None: they are the whole batch.
            in_place: whether the input may be modified, which saves copies.
        """
        number, parts, count = part or (0, 1, len(images))
        # Both are always drawn, so that the crops are the same with and without flips.
        offsets = torch.randint(0, 2 * self.pad + 1, (2, count, 1), generator=generator)[:, number::parts]
        flips = torch.randint(0, 2, (count, 1), generator=generator)[number::parts].bool() & self.flip
        device = images.device
        if self.crop is not None:
            images = self.crop(images, generator, (number, parts, count))
        if device.type == "cpu" and (self.pad or self.flip) and images[:1].numel() >= _SINGLY:
            images = self._singly(images, offsets[..., 0], flips.flatten(), in_place)
        else:
            images = self._at_once(images, offsets[..., 0], flips)
        if self.changes:
            seeds = torch.randint(0, 2**62, (count,), generator=generator)[number::parts]
            images = self.changes(images.contiguous(), seeds)
        return images

    def _singly(self, images: Tensor, offsets: Tensor, flips: Tensor, in_place: bool) -> Tensor:
        H, W = images.shape[2:]
        padded, shown = self._padded(images) if self.pad else images, images if in_place else torch.empty_like(images)
        for place, (row, column, flip) in enumerate(zip(*offsets.tolist(), flips.tolist(), strict=True)):
            window = padded[place, :, row : row + H, column : column + W]
            if flip or padded is not shown:
                shown[place] = window.flip(2) if flip else window
        return shown

    def _at_once(self, images: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        (B, _, H, W), device = images.shape, images.device
        if self.pad:
            # All possible windows, as a view: (B, C, rows, columns, H, W).
            windows = self._padded(images).unfold(2, H, 1).unfold(3, W, 1)
            row, column = offsets.to(device, non_blocking=True)
            images = windows[torch.arange(B, device=device), :, row, column]
        if self.flip:
            flips = flips.view(B, 1, 1, 1).to(device, non_blocking=True)
            images = torch.where(flips, images.flip(3), images)
        return images

    def _padded(self, images: Tensor) -> Tensor:
        if self.pad_mode == "zero":
            return F.pad(images, [self.pad] * 4)
        # By index, because torch cannot reflect uint8, and so that padding wider than the image reflects repeatedly.
        for axis in (2, 3):
            side = images.shape[axis]
            place = torch.arange(-self.pad, side + self.pad, device=images.device) % max(2 * (side - 1), 1)
            images = images.index_select(axis, torch.minimum(place, 2 * (side - 1) - place).clamp_min(0))
        return images
