"""Accuracy under FGSM and PGD with a perturbation of 8/255.

FGSM: Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv 1412.6572.
PGD: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv 1706.06083.
Both are white-box, untargeted and bounded in the largest change of a pixel. The accuracy under attack is an upper
bound: a stronger attack may reduce it further.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metamixer.losses.components.adversarial_examples import Pixels, perturb

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attack:
    """Settings of an attack, for pixels in [0, 1].

    Args:
        steps: 1 is FGSM, with a step of ``eps``; more is PGD.
        eps: largest change of a pixel.
        step: size of each of several steps.
        random_start: start at a random point within ``eps`` of the image instead of at the image.
    """

    steps: int
    eps: float = 8 / 255
    step: float = 2 / 255
    random_start: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.eps < 0 or self.step <= 0:
            raise ValueError(f"{self}: expected at least 1 step, eps of at least 0 and a step above 0")


ATTACKS = {"fgsm": Attack(1), "pgd-10": Attack(10), "pgd-20": Attack(20)}
"""Attacks by name."""


def attacked(
    network: Network,
    images: Tensor,
    labels: Tensor,
    pixels: Pixels,
    attack: Attack,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``(B, C, ...), (B,) -> (B, C, ...)``: images within ``eps`` of the given ones with a higher cross-entropy.

    Args:
        network: maps normalised images to ``(B, classes)`` logits or log-probabilities. The caller sets its mode (see
            :func:`evaluating`); its weights and their gradients do not change.
        images: normalised images. The result is normalised in the same way, and its pixels are in the valid range.
        labels: the true classes.
        pixels: the range of normalised pixels.
        attack: settings of the attack.
        generator: generator of the random start.
    """

    def loss(changed: Tensor) -> Tensor:
        # The sum, so that the gradient of an image does not depend on the batch size.
        return F.cross_entropy(network(changed), labels, reduction="sum")

    if not attack.random_start:
        return perturb(loss, images, pixels, eps=attack.eps, step=attack.step, steps=attack.steps)
    low, high = (bound.to(images).view(1, -1, *[1] * (images.ndim - 2)) for bound in pixels)
    unit, start = high - low, images.detach()
    drawn = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
    least, most = ((start + change * unit).clamp(low, high) for change in (-attack.eps, attack.eps))
    changed = (start + drawn * attack.eps * unit).clamp(low, high)
    size = attack.eps if attack.steps == 1 else attack.step
    for _ in range(attack.steps):
        # One FGSM step from the current point, then projection to the ball around the start.
        moved = perturb(loss, changed, pixels, eps=size, step=size, steps=1)
        changed = torch.minimum(torch.maximum(moved, least), most)
    return changed
