"""Augmentation of each image on its own, by torchvision: policies that draw operations, and erased boxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Policy = Literal["none", "light", "trivial", "rand", "auto", "augmix"]
POLICIES: tuple[Policy, ...] = ("none", "light", "trivial", "rand", "auto", "augmix")


@cache
def _transform(policy: Policy, erasing: float) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    named = {
        "trivial": v2.TrivialAugmentWide,  # arXiv 2103.10158
        "rand": v2.RandAugment,  # arXiv 1909.13719
        "auto": v2.AutoAugment,  # arXiv 1805.09501
        "augmix": v2.AugMix,  # arXiv 1912.02781
    }
    steps = [named[policy]()] if policy in named else []
    change: Callable[[Tensor], Tensor] = v2.Compose([*steps, *([v2.RandomErasing(erasing)] if erasing else [])])
    return change


def each_image(images: Tensor, seeds: Tensor, policy: Policy, erasing: float) -> Tensor:
    """Every image changed by the policy with draws of its own, then erased in a black box with probability ``erasing``.

    torchvision draws from torch's global generator, which is as it was before afterwards.

    Args:
        images: ``(B, C, H, W)`` uint8, on any device.
        seeds: ``(B,)`` int64.
        policy: of :data:`POLICIES`; ``none`` and ``light`` change nothing here.
        erasing: in [0, 1].
    """
    change = _transform(policy, erasing)
    cuda = [images.device] if images.device.type == "cuda" else []
    changed = []
    with torch.random.fork_rng(devices=cuda):
        for image, seed in zip(images, seeds.tolist(), strict=True):
            torch.manual_seed(seed)
            changed.append(change(image))
    return torch.stack(changed)
