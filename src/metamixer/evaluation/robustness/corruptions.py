"""Fifteen common corruptions in five severities, for small images.

The kinds and their severities are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, arXiv 1903.12261, in their version for images of 32 x 32 (CIFAR-10-C).
**This is not CIFAR-10-C itself**: random draws differ, image libraries differ in details, and frost is synthetic
instead of photographed. Accuracies are comparable with each other, but not with published ones;
:mod:`metamixer.evaluation.robustness.cifar_c` reads the official files.

Lengths published for images of 32 x 32 pixels (radii and widths of blur, the reach of elastic and glass, the size of
snow flakes) are multiplied by ``max(1, min(H, W) / 32)``. Zoom and pixelate are relative to the side, and fog consists
of octaves of the side, so they need no scaling. Noise is independent for each pixel, and JPEG has blocks of 8 x 8.

A higher severity does not always mean a larger distance in pixels. As published, the elastic transform rotates less but
bends more, glass blurs less but moves pixels twice, and frost darkens the image while it covers more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from metamixer.core.seeding import generator
from metamixer.evaluation.robustness import blur, digital, noise, weather

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""``(N, C, H, W)`` float32 in [0, 1], severity from 1 to 5, and generator -> the same shape; clamped by the caller."""

CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
"""Corruptions by name, in the order of the tables of the paper."""

SEVERITIES = (1, 2, 3, 4, 5)
LEAST = 16
"""The smallest length of the shorter side in pixels; below it blur has no effect."""


def corrupt(images: Tensor, kind: str, severity: int, *, seed: int = 0, first: int = 0) -> Tensor:
    """Corrupt images: ``(N, C, H, W)`` uint8 -> ``(N, C, H, W)`` uint8, on the CPU.

    The same seed gives the same result. All severities of a kind use the same random draws.

    Args:
        images: grey (C = 1) or colour (C = 3) images of at least 16 pixels.
        kind: a name of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: seed of the random draws.
        first: index of the first image, so that different parts of a set have different draws.

    Raises:
        ValueError: the kind, the severity or the images are not valid.

    >>> grey = torch.full((2, 1, 32, 32), 100, dtype=torch.uint8)
    >>> corrupt(grey, "brightness", 3).unique()
    tensor([138], dtype=torch.uint8)
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"{kind!r} is not a corruption; expected one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity!r}: expected 1 to 5")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}; expected (N, C, H, W) uint8 with C = 1 or 3"
        )
    if min(images.shape[2:]) < LEAST:
        raise ValueError(
            f"images of {images.shape[2]} x {images.shape[3]} are too small; expected at least {LEAST} pixels"
        )
    draw = generator(seed, "corrupt", kind, first)
    changed = CORRUPTIONS[kind](images.cpu().float() / 255, severity, draw)
    return changed.clamp(0, 1).mul(255).round().byte()
