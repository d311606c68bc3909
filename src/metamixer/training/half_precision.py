"""Warn if half precision is slower than float32, as on processors without native support."""

from __future__ import annotations

import time
import warnings
from functools import cache

import torch
from torch.nn import functional as F

from metamixer.training.settings import HALF, Precision

_SLOWER = 1.5  # below it is noise; without the arithmetic it is 3 to 30
_ROUNDS, _SECONDS = 3, 0.3  # at least


@cache
def slowdown(precision: Precision, device: str) -> float:
    """How many times the time of float32 a convolution takes, forward and backward; 1 for ``32``.

    Measured, because what a processor says of itself leaves out what the library makes of it.

    Args:
        precision: of the settings.
        device: the type, such as ``cpu``.
    """
    if (half := HALF.get(precision)) is None:
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
    torch.set_num_threads(1)  # where others compute as well, threads wait for each other
    try:
        while len(rounds) < _ROUNDS or sum(map(sum, rounds)) < _SECONDS:
            rounds.append((seconds(False), seconds(True)))
    finally:
        torch.set_num_threads(threads)
    return min(slow for _, slow in rounds) / min(plain for plain, _ in rounds)


@cache
def warn_if_slow(precision: Precision, device: str) -> None:
    """Warn, once in a process, where a precision is slower than float32 on a device.

    Warns:
        UserWarning: with the ratio that was measured.
    """
    if (ratio := slowdown(precision, device)) > _SLOWER:
        warnings.warn(
            f"train.precision={precision} takes {ratio:.1f} times as long as 32 on this {device.upper()} (a measured "
            "convolution): it has no such arithmetic; train.precision=32 is faster here",
            stacklevel=2,
        )
