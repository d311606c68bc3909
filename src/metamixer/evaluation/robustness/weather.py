"""Corruptions by weather. For values and random draws see :mod:`metamixer.evaluation.robustness.corruptions`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metamixer.evaluation.robustness.blur import scale_of, trace, zoomed

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_COLD = (0.86, 0.94, 1.0)  # the tint of frost


def snow(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Flakes that fall in two directions in front of a paler image."""
    loc, deviation, zoom, least, radius, sigma, kept = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[severity - 1]
    N, C, H, W = images.shape
    scale = scale_of(images)
    flakes = zoomed(loc + deviation * torch.randn((N, 1, H, W), generator=draw), max(1.0, zoom * scale))
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    angles = (-0.75 + 0.5 * torch.rand(N, generator=draw)) * math.pi  # downwards, 45 degrees to either side
    flakes = trace(flakes, radius * scale, sigma * scale, angles)
    grey = images if C == 1 else (images * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    pale = kept * images + (1 - kept) * torch.maximum(images, grey * 1.5 + 0.5)
    return pale + flakes + flakes.rot90(2, (2, 3))


def frost(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Ice crystals on the lens. The paper blends in photographs of frost; here they are synthetic."""
    kept, ice = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    return kept * images + ice * crystals(images.shape, draw)


def crystals(shape: torch.Size, draw: torch.Generator) -> Tensor:
    """``(N, C, H, W)`` in [0, 1]: a synthetic frost texture of ridges in rough clouds, with needles across them."""
    N, C, H, W = shape
    clouds = plasma(N, H, W, 2.0, draw)
    ridges = (1 - (2 * clouds - 1).abs()) ** 2
    seeds = (torch.rand((N, 1, H, W), generator=draw) < 0.08).float()
    scale = max(1.0, min(H, W) / 32)
    needles = sum(trace(seeds, 6 * scale, 4 * scale, torch.rand(N, generator=draw) * 2 * math.pi) for _ in range(3))
    texture = (0.15 + 0.45 * ridges + 0.8 * needles).clamp(0, 1)
    return texture if C == 1 else texture * torch.tensor(_COLD).view(1, 3, 1, 1)


def fog(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """A cloud over the image; the largest value of each image does not change."""
    amount, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    N, _, H, W = images.shape
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + amount * plasma(N, H, W, decay, draw)) * brightest / (brightest + amount)


def plasma(count: int, height: int, width: int, decay: float, draw: torch.Generator) -> Tensor:
    """``(N, 1, H, W)`` clouds in [0, 1] by the periodic diamond-square algorithm, cropped from a power of two.

    The random shift is divided by ``decay`` from one octave to the next: the smaller ``decay``, the rougher the clouds.
    """
    size = 2 ** math.ceil(math.log2(max(height, width)))
    field = torch.zeros(count, size, size)
    shift, step = 100.0, size

    def shifted(means: Tensor) -> Tensor:
        return means + shift**2 * (2 * torch.rand(means.shape, generator=draw) - 1)

    while step > 1:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = shifted((pairs + pairs.roll(-1, 2)) / 4)
        field[:, half::step, half::step] = centres
        field[:, ::step, half::step] = shifted((corners + corners.roll(-1, 2) + centres + centres.roll(1, 1)) / 4)
        field[:, half::step, ::step] = shifted((corners + corners.roll(-1, 1) + centres + centres.roll(1, 2)) / 4)
        shift, step = shift / decay, half
    field -= field.amin((1, 2), keepdim=True)
    return (field / field.amax((1, 2), keepdim=True))[:, None, :height, :width]
