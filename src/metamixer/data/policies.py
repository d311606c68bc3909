"""Augmentation of single images by torchvision: policies, colour jitter, random erasing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from metamixer.data.errors import DataError

Policy = Literal["none", "light", "trivial", "rand", "auto", "auto-cifar10", "auto-svhn", "augmix"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
_LIMITS = {"rand": {"magnitude": (0, 30), "ops": (1, 14)}, "augmix": {"magnitude": (1, 10), "ops": (1, 10)}}
_JITTER = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Changes:
    """Changes drawn for each image.

    Args:
        policy: ``light`` and ``none`` change nothing; ``trivial``, ``rand``, ``augmix`` and ``auto`` (the policy for
            ImageNet; ``auto-cifar10`` and ``auto-svhn`` those for these sets) are the transforms of torchvision.
        magnitude: magnitude of ``rand`` from 0 to 30 (None: 9), or severity of ``augmix`` from 1 to 10 (None: 3).
        ops: number of operations of ``rand`` (None: 2), or of chains that ``augmix`` mixes (None: 3).
        jitter: largest relative change of brightness, contrast and saturation, and largest change of the hue (up to
            0.5).
        erasing: probability that a random box of an image is set to black (arXiv 1708.04896).
    """

    policy: Policy = "light"
    magnitude: int | None = None
    ops: int | None = None
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise DataError(f"augment={self.policy!r}; expected one of {', '.join(POLICIES)}")
        for name, value in (("magnitude", self.magnitude), ("ops", self.ops)):
            if value is None:
                continue
            if self.policy not in _LIMITS:
                raise DataError(f"augment_{name}={value} with augment={self.policy}; expected with rand or augmix")
            low, high = _LIMITS[self.policy][name]
            if not low <= value <= high:
                raise DataError(f"augment_{name}={value}; expected {low} to {high} with augment={self.policy}")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            said = ", ".join(f"{name} {value:g}" for name, value in zip(_JITTER, self.jitter, strict=True))
            raise DataError(f"color_jitter: {said}; expected 0 or more, and at most 0.5 for the hue")
        if not 0 <= self.erasing <= 1:
            raise DataError(f"erasing={self.erasing}; expected a probability from 0 to 1")

    def check(self, channels: int) -> None:
        """Raise DataError if colours are to be changed and the images have neither 1 nor 3 channels."""
        if channels not in (1, 3) and (self.policy not in ("none", "light") or any(self.jitter)):
            raise DataError(
                f"augment={self.policy} and color_jitter change colours, the images have {channels} channels; expected "
                "augment=light or none, and no color_jitter"
            )

    def __bool__(self) -> bool:
        return self.policy not in ("none", "light") or any(self.jitter) or self.erasing > 0

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Change every image with its own random draws.

        torchvision draws from the global generator of torch, whose state is restored afterwards.

        Args:
            images: ``(B, C, H, W)`` uint8, or float32 from 0 to 255, on any device.
            seeds: ``(B,)`` int64.
        """
        self.check(images.shape[1])
        floating = images.is_floating_point()
        cuda = [images.device] if images.device.type == "cuda" else []
        changed = []
        with torch.random.fork_rng(devices=cuda):
            for image, seed in zip(images / 255 if floating else images, seeds.tolist(), strict=True):
                torch.manual_seed(seed)
                changed.append(self._transform(image))
        return torch.stack(changed).mul_(255) if floating else torch.stack(changed)

    @cached_property
    def _transform(self) -> Callable[[Tensor], Tensor]:
        from torchvision.transforms import v2

        steps: list[Callable[[Tensor], Tensor]] = []
        if self.policy == "trivial":  # arXiv 2103.10158
            steps.append(v2.TrivialAugmentWide())
        elif self.policy == "rand":  # arXiv 1909.13719
            steps.append(v2.RandAugment(self.ops or 2, 9 if self.magnitude is None else self.magnitude))
        elif self.policy.startswith("auto"):  # arXiv 1805.09501
            steps.append(v2.AutoAugment(v2.AutoAugmentPolicy(self.policy.partition("-")[2] or "imagenet")))
        elif self.policy == "augmix":  # arXiv 1912.02781
            steps.append(v2.AugMix(self.magnitude or 3, self.ops or 3))
        if any(self.jitter):
            steps.append(v2.ColorJitter(*self.jitter))
        if self.erasing:
            steps.append(v2.RandomErasing(self.erasing))
        change: Callable[[Tensor], Tensor] = v2.Compose(steps)
        return change
