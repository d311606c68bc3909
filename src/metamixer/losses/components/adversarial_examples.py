"""Adversarial examples: bounded perturbations in units of pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Pixels(NamedTuple):
    """The range of normalised pixels, each ``(C,)``.

    Args:
        low: the normalised value of a pixel of 0.
        high: the normalised value of a pixel of 1 (255 in 8 bits).
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> Pixels:
        """The range for the normalisation ``(pixel - mean) / std`` of each channel, with pixels in [0, 1].

        >>> Pixels.of([0.5], [0.25])
        Pixels(low=tensor([-2.]), high=tensor([2.]))
        """
        if len(mean) != len(std) or not mean or not all(value > 0 for value in std):
            raise ValueError(f"mean={list(mean)}, std={list(std)}: one mean and one deviation above 0 for each channel")
        at, scale = torch.tensor(list(mean)), torch.tensor(list(std))
        return cls(-at / scale, (1 - at) / scale)


def perturb(
    value: Callable[[Tensor], Tensor], images: Tensor, pixels: Pixels, *, eps: float, step: float, steps: int
) -> Tensor:
    """``(B, C, ...) -> (B, C, ...)``: images x + d with ``|d| <= eps`` that increase ``value``; pixels stay in range.

    One step is FGSM (arXiv 1412.6572) with a step of ``eps``; ``step`` is then ignored. More steps are PGD (1706.06083)
    from the images themselves. There is no random start, because losses draw no random numbers. It is only needed when
    ``value`` compares a network with itself, whose gradient vanishes at d = 0; between peers it does not.

    Args:
        value: maps images to the 0-d value to increase. Only the gradient of the images is computed from its graph.
        images: normalised images. No gradient flows into them.
        pixels: the range of normalised pixels.
        eps: the largest change of a pixel in [0, 1].
        step: the change in each of several steps.
        steps: number of steps.
    """
    shape = (1, -1, *[1] * (images.ndim - 2))
    low, high = (bound.to(images).view(shape) for bound in pixels)
    if low.shape[1] != images.shape[1]:
        raise ValueError(f"pixels are known for {low.shape[1]} channels, the images have {images.shape[1]}")
    unit = high - low  # a pixel of 1, normalised
    start = images.detach()
    # Clamped to the range of pixels last, so that the result is a valid image even if the input was not.
    least, most = ((start + change * unit).clamp(low, high) for change in (-eps, eps))
    changed = start
    for _ in range(steps):
        with torch.enable_grad():
            changed = changed.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(value(changed), changed)
        moved = changed.detach() + (eps if steps == 1 else step) * unit * gradient.sign()
        changed = torch.minimum(torch.maximum(moved, least), most)
    return changed
