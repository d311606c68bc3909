"""Corruptions by pixel noise. For values and random draws see :mod:`metamixer.evaluation.robustness.corruptions`."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_noise(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Gaussian noise, as in low light."""
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return images + deviation * torch.randn(images.shape, generator=draw)


def shot_noise(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Photon counts: Poisson noise whose mean is the pixel times the number of photons of a white pixel."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    return torch.poisson(images * photons, generator=draw) / photons


def impulse_noise(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Salt-and-pepper noise, independent in each channel."""
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    lost = torch.rand(images.shape, generator=draw) < amount
    salt = (torch.rand(images.shape, generator=draw) < 0.5).to(images.dtype)
    return torch.where(lost, salt, images)
