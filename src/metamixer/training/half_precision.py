"""Warn if half precision is slower than float32, as on processors without native support."""

from __future__ import annotations

import time
import warnings
from functools import cache

import torch
from torch.nn import functional as F

from metamixer.training.settings import HALF, Precision

_SLOWER = 1.5  # smaller ratios may be noise; without native support the ratio is 3 to 30
_ROUNDS, _SECONDS = 3, 0.3  # the least number of rounds, and the least time to measure


@cache
def slowdown(precision: Precision, device: str) -> float:
    """The time of a convolution, forward and backward, relative to float32; 1 for ``32``.

    Measured, because the features of a processor do not show how well the library supports them. GPUs with native
    support are not measured: other programs on the same GPU could distort the ratio.

    Args:
        precision: precision of the settings.
        device: type of the device, such as ``cpu``.
    """
    if (half := HALF.get(precision)) is None or (device == "cuda" and _native(precision)):
        return 1.0
    batch, channels, side = (8, 64, 16) if device == "cpu" else (64, 256, 32)
    images = torch.ones(batch, channels, side, side, device=device)
    kernel = torch.ones(channels, channels, 3, 3, device=device, requires_grad=True)
    synchronize = torch.get_device_module(device).synchronize

    def seconds(enabled: bool) -> float:
        synchronize()
        began = time.perf_counter()
        with torch.enable_grad(), torch.autocast(device, half, enabled=enabled):
            found = F.conv2d(images, kernel, padding=1)
        torch.autograd.grad(found.float().mean(), kernel)
        synchronize()
        return time.perf_counter() - began

    threads, rounds = torch.get_num_threads(), list[tuple[float, float]]()
    torch.set_num_threads(1)  # on a busy machine threads wait for each other
    try:
        while len(rounds) < _ROUNDS or sum(map(sum, rounds)) < _SECONDS:
            rounds.append((seconds(False), seconds(True)))
    finally:
        torch.set_num_threads(threads)
    return min(slow for _, slow in rounds) / min(plain for plain, _ in rounds)


def _native(precision: Precision) -> bool:
    """Whether the current GPU supports a half precision natively; all GPUs that torch supports have float16."""
    return precision == "16" or torch.cuda.is_bf16_supported(including_emulation=False)


@cache
def warn_if_slow(precision: Precision, device: str) -> None:
    """Warn once per process if a precision is slower than float32 on a device.

    Warns:
        UserWarning: with the measured ratio.
    """
    if (ratio := slowdown(precision, device)) > _SLOWER:
        warnings.warn(
            f"train.precision={precision} takes {ratio:.1f} times as long as 32 on this {device.upper()} (a measured "
            "convolution): there is no native support; train.precision=32 is faster here",
            stacklevel=2,
        )
