"""Class weights for imbalanced training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

ClassWeights = Literal["none", "balanced", "effective"]


def weights_of(kind: ClassWeights, counts: Sequence[int] | Tensor, beta: float = 0.999) -> Tensor | None:
    """Class weights ``(C,)`` float32, or None for ``none``.

    ``balanced``: N / (C n_c), as in scikit-learn, with the mean 1 over the training images. ``effective``: by the
    effective number of images, (1 - beta) / (1 - beta^n_c), scaled to the sum C (Cui et al., CVPR 2019, arXiv
    1901.05555).

    Args:
        kind: type of the weights.
        counts: number of training images of each class; 0 counts as 1.
        beta: parameter of ``effective``: 0 gives equal weights; near 1, weights are inversely proportional to the
            counts.

    >>> weights_of("balanced", [30, 10])
    tensor([0.6667, 2.0000])
    """
    if kind == "none":
        return None
    count = torch.as_tensor(counts, dtype=torch.float64).clamp(min=1)
    if kind == "balanced":
        return (count.sum() / (len(count) * count)).float()
    weights = (1 - beta) / (1 - beta**count)
    return (weights * len(count) / weights.sum()).float()


def smoothed(targets: Tensor, share: float) -> Tensor:
    """Label smoothing, ``(B, C)`` -> ``(B, C)``: ``(1 - share) t + share / C`` (Szegedy et al., arXiv 1512.00567)."""
    return targets if share == 0 else targets * (1 - share) + share / targets.shape[-1]
