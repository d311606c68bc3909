"""Corruptions by processing. For values and random draws see :mod:`metamixer.evaluation.robustness.corruptions`."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from metamixer.evaluation.robustness.blur import gaussian


def brightness(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Increase the value in HSV; hue and saturation do not change."""
    amount = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    # With constant hue and saturation all channels get the same factor; black has neither and becomes grey.
    return torch.where(value > 0, images * brighter / value.clamp_min(1e-6), brighter)


def contrast(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Move every channel towards its mean."""
    amount = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * amount + mean


def elastic_transform(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """A random affine map, then a smooth random displacement field.

    The values are relative to the side: size and smoothness of the field, and reach of the affine map. As published,
    the affine map gets weaker with the severity while the field gets stronger.
    """
    amount, smooth, reach = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))[
        severity - 1
    ]
    N, _, H, W = images.shape
    side = min(H, W)
    turned = _sampled(images, _affine(N, H, W, reach * side, draw), True)
    field = torch.rand((N, 2, H, W), generator=draw) * 2 - 1
    moves = gaussian(field, smooth * side, truncate=3, mode="reflect") * (amount * side)
    return _sampled(turned, _grid(H, W) + moves.permute(0, 2, 3, 1), False)


def _grid(height: int, width: int) -> Tensor:
    """``(H, W, 2)``: x and y of every pixel."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return torch.stack([x, y], -1)


def _affine(count: int, height: int, width: int, reach: float, draw: torch.Generator) -> Tensor:
    """``(N, H, W, 2)``: the source of each pixel when three points around the centre move by up to ``reach``."""
    middle, third = torch.tensor([height // 2, width // 2]).float(), min(height, width) // 3
    corners = middle + third * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = corners + (torch.rand((count, 3, 2), generator=draw) * 2 - 1) * reach
    ones = torch.ones(count, 3, 1)
    # Three pairs of points determine the map, from the moved to the original positions.
    back = torch.linalg.solve(torch.cat([moved, ones], -1), corners.expand(count, 3, 2))
    places = _grid(height, width)
    return torch.einsum("hwi,nij->nhwj", torch.cat([places, torch.ones(height, width, 1)], -1), back)


def _sampled(images: Tensor, places: Tensor, at_pixel: bool) -> Tensor:
    """Sample images at ``places`` ``(N, H, W, 2)`` in pixels, bilinear, reflected at border pixels or their edges."""
    H, W = images.shape[2:]
    size = torch.tensor([W, H]).float()
    shown = 2 * places / (size - 1) - 1 if at_pixel else (2 * places + 1) / size - 1
    return F.grid_sample(images, shown, mode="bilinear", padding_mode="reflection", align_corners=at_pixel)


def pixelate(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Shrink the image and enlarge it again."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    H, W = images.shape[2:]
    few = (int(W * share), int(H * share))
    return _by_pillow(images, lambda one: one.resize(few, Image.Resampling.BOX).resize((W, H), Image.Resampling.BOX))


def jpeg_compression(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Encode the image as a JPEG of low quality and decode it."""
    quality = (80, 65, 58, 50, 40)[severity - 1]

    def written(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(images, written)


def _by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    grey = pixels.shape[-1] == 1
    found = [np.array(change(Image.fromarray(one[..., 0] if grey else one))) for one in pixels]
    stacked = torch.from_numpy(np.stack(found)).float() / 255
    return stacked[:, None] if grey else stacked.permute(0, 3, 1, 2).contiguous()
