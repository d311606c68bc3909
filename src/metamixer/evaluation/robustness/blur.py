"""Corruptions by blur. For values and random draws see :mod:`metamixer.evaluation.robustness.corruptions`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def scale_of(images: Tensor) -> float:
    """The factor of lengths published for 32 pixels; at least 1, because blur below a pixel has no effect."""
    return max(1.0, min(images.shape[2:]) / 32)


def gaussian(images: Tensor, sigma: float, truncate: float = 4.0, mode: str = "nearest") -> Tensor:
    """A Gaussian blur of the last two axes."""
    from scipy.ndimage import gaussian_filter

    if not sigma:
        return images
    sigmas = (*[0.0] * (images.ndim - 2), sigma, sigma)
    return torch.from_numpy(gaussian_filter(images.numpy(), sigmas, truncate=truncate, mode=mode))


def defocus_blur(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Convolve with a disc whose jagged edge is smoothed by a Gaussian of 3 x 3 pixels."""
    radius, smooth = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    radius, smooth = radius * scale_of(images), smooth * scale_of(images)
    reach = math.ceil(radius) + 1
    along = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disc = (along[:, None].square() + along.square() <= radius**2).double()
    near = (-torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64) / (2 * smooth**2)).exp()
    near /= near.sum()
    rim = F.conv2d((disc / disc.sum())[None, None], (near[:, None] * near)[None, None], padding=1)
    return _filter(images, rim[0, 0].float())


def _filter(images: Tensor, kernel: Tensor) -> Tensor:
    """Filter every channel with a kernel of odd size, with reflection at the borders."""
    N, C, H, W = images.shape
    reach = len(kernel) // 2
    padded = F.pad(images, (reach,) * 4, mode="reflect").view(N * C, 1, H + 2 * reach, W + 2 * reach)
    return F.conv2d(padded, kernel[None, None]).view(images.shape)


def glass_blur(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Frosted glass: blur, replace every pixel by one of its neighbours, and blur again.

    The authors' code for CIFAR-10-C swaps two views of one array, which in effect copies: no pixel moves further than
    its reach. A real swap would carry pixels along. Pixels are copied here as well.
    """
    sigma, reach, times = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[severity - 1]
    sigma, reach = sigma * scale_of(images), round(reach * scale_of(images))
    N, _, H, W = images.shape
    shuffled = gaussian(images, sigma)
    y, x = torch.arange(reach + 1, H - reach + 1), torch.arange(reach + 1, W - reach + 1)
    which = torch.arange(N)[:, None, None]
    for _ in range(times):
        moves = torch.randint(-reach, reach, (2, N, len(y), len(x)), generator=draw)
        moved = shuffled.clone()
        # Advanced indices around a slice are moved to the front: (N, h, w, C).
        moved[:, :, y[:, None], x] = shuffled[which, :, y[:, None] + moves[0], x + moves[1]].permute(0, 3, 1, 2)
        shuffled = moved
    return gaussian(shuffled, sigma)


def motion_blur(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Motion blur to one side, in a direction up to 45 degrees from the horizontal."""
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    angles = (torch.rand(len(images), generator=draw) * 2 - 1) * math.pi / 4
    return trace(images, radius * scale_of(images), sigma * scale_of(images), angles)


def trace(images: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """Blur each image along its angle, weighted by half a Gaussian, as in the motion blur of ImageMagick.

    Args:
        images: ``(N, C, H, W)``.
        radius: radius in pixels; the trace has ``2 * radius + 1`` pixels.
        sigma: standard deviation of the weights in pixels.
        angles: ``(N,)`` in radians.
    """
    N, _, H, W = images.shape
    along = torch.arange(2 * round(radius) + 1)
    weights = (-along.double().square() / (2 * sigma**2)).exp()
    shares = (weights / weights.sum()).tolist()
    rows, columns, which = torch.arange(H), torch.arange(W), torch.arange(N)[:, None, None]
    blurred = torch.zeros_like(images)
    for step, share in enumerate(shares):
        if share < 1e-5:  # too small to change any of 255 values
            break
        dy, dx = ((step * turn(angles)).round().long()[:, None] for turn in (torch.sin, torch.cos))
        y, x = (rows + dy).clamp(0, H - 1), (columns + dx).clamp(0, W - 1)
        blurred += share * images[which, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    return blurred


def zoom_blur(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """The mean of the image and of increasingly zoomed views of it."""
    # As published: rounding of the steps decides whether the last one is included.
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1], 0.01).tolist()
    total = images.clone()
    for factor in factors:
        total += zoomed(images, factor)
    return total / (len(factors) + 1)


def zoomed(images: Tensor, factor: float) -> Tensor:
    """The centre of each image, enlarged to the size of the image."""
    H, W = images.shape[2:]
    h, w = math.ceil(H / factor), math.ceil(W / factor)
    top, left = (H - h) // 2, (W - w) // 2
    middle = images[:, :, top : top + h, left : left + w]
    large = F.interpolate(middle, (round(h * factor), round(w * factor)), mode="bilinear", align_corners=True)
    top, left = (large.shape[2] - H) // 2, (large.shape[3] - W) // 2
    return large[:, :, top : top + H, left : left + W]
