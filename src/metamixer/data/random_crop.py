"""Random resized crop (Inception crop), from files or from a batch in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metamixer.data.errors import DataError
from metamixer.data.files.image_file import Box, Crop

_TRIES = 10


@dataclass(frozen=True)
class RandomCrop:
    """A crop with a random share of the area and a random aspect ratio (Szegedy et al., arXiv 1409.4842).

    Args:
        scale: smallest and largest share of the area.
        ratio: smallest and largest aspect ratio, width divided by height, drawn log-uniformly.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(f"crop_scale={list(self.scale)}: expected [least, largest] share of the area, above 0 to 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise DataError(f"crop_ratio={list(self.ratio)}: expected [least, largest] width : height, above 0")

    def draw(self, draw: torch.Generator) -> Crop:
        """Draw a crop: the first of ten random areas and ratios that fits into the image, or the whole image.

        >>> box = RandomCrop((0.25, 0.25)).draw(torch.Generator().manual_seed(0))(100, 100)
        >>> round((box[2] - box[0]) * (box[3] - box[1]))
        2500
        """
        tries = torch.rand(_TRIES, 4, generator=draw, dtype=torch.float64).tolist()
        low, high = map(math.log, self.ratio)

        def crop(width: int, height: int) -> Box:  # as _boxes, but faster for one image
            for share, stretch, x, y in tries:
                area = width * height * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
                ratio = math.exp((low + high) / 2 + (2 * stretch - 1) * (high - low) / 2)
                w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
                if w <= width and h <= height:
                    left, top = x * (width - w), y * (height - h)
                    return left, top, left + w, top + h
            return 0.0, 0.0, float(width), float(height)

        return crop

    def __call__(self, images: Tensor, draw: torch.Generator, part: tuple[int, int, int]) -> Tensor:
        """``(B, C, H, W)`` -> the same shape and type, with each image cropped independently and resized (bilinear).

        Args:
            images: a batch on any device.
            draw: a CPU generator.
            part: ``(number, parts, count)``, see :meth:`metamixer.data.Augment.pixels`.
        """
        number, parts, count = part
        H, W = images.shape[2:]
        tries = torch.rand(count, _TRIES, 4, generator=draw, dtype=torch.float64)[number::parts]
        left, top, w, h = (self._boxes(tries, W, H) / torch.tensor([W, H, W, H])).T
        zero = torch.zeros_like(w)
        places = torch.stack([w, zero, 2 * left + w - 1, zero, h, 2 * top + h - 1], 1).view(-1, 2, 3)
        grid = F.affine_grid(places.float().to(images.device), list(images.shape), align_corners=False)
        found = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return found if images.is_floating_point() else found.round_().to(images.dtype)

    def _boxes(self, tries: Tensor, width: int, height: int) -> Tensor:
        """``(B, tries, 4)`` in [0, 1) -> ``(B, 4)``: left, top, width and height of the first try that fits."""
        share, stretch, x, y = tries.unbind(-1)
        area = width * height * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
        low, high = map(math.log, self.ratio)
        ratio = ((low + high) / 2 + (2 * stretch - 1) * (high - low) / 2).exp()
        w, h = (area * ratio).sqrt(), (area / ratio).sqrt()
        fits = (w <= width) & (h <= height)
        first = fits.int().argmax(1, keepdim=True)
        boxes = torch.stack([x * (width - w), y * (height - h), w, h], -1)
        found = boxes.take_along_dim(first[..., None], 1)[:, 0]
        whole = torch.tensor([0, 0, width, height], dtype=found.dtype)
        return torch.where(fits.any(1, keepdim=True), found, whole)
