"""Random draws of mixers: lambda, partners, boxes. On the CPU, so that a seed gives the same plan on any device."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor

from metamixer.core.ranges import Share

Per = Literal["batch", "sample"]
Alpha = Annotated[float, Field(ge=0.01)]
"""The parameter of Beta(alpha, alpha). Below 0.01 both gamma variates of its sampler underflow."""


def _check_strength(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1):
        return value
    raise PydanticCustomError("strength", "input should be a number in [0, 1] or auto")  # one line for both


Strength = Annotated[
    Share | Literal["auto"], BeforeValidator(_check_strength), Field(json_schema_extra={"neutral": 1.0})
]
"""The factor of the probability of mixing: a number, or ``auto`` for a number that the training loop passes."""


def strength(probability: float, until: float, ramp: float, progress: float | None) -> float:
    """The probability of mixing at ``progress``: constant, then falling linearly to 0 in the ``ramp`` before ``until``.

    >>> [strength(0.5, 1.0, 0.5, at) for at in (0.0, 0.75, 1.0)]
    [0.5, 0.25, 0.0]
    """
    if progress is None:
        return probability
    if progress >= until and until < 1:
        return 0.0
    return probability * min(1.0, (until - progress) / ramp) if ramp else probability


def happens(probability: float, generator: torch.Generator | None) -> bool:
    """Draw an event of the given probability. Always takes one random number, so that later draws do not shift."""
    return bool(torch.rand((), generator=generator, dtype=torch.float64) < probability)


def beta(alpha: float, count: int | None, generator: torch.Generator | None) -> Tensor:
    """Beta(alpha, alpha): 0-d (``count`` None) or ``(count,)`` float64 in [0, 1], on the CPU."""
    # torch.distributions.Beta takes no generator; this is its sampler.
    concentration = torch.full((count or 1, 2), alpha, dtype=torch.float64)
    share = torch._sample_dirichlet(concentration, generator=generator)[:, 0]
    return share[0] if count is None else share


def permutation(count: int, generator: torch.Generator | None) -> Tensor:
    """``(count,)`` int64: a random order of the batch, on the CPU."""
    return torch.randperm(count, generator=generator)


def same_class_partners(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """``(B,)`` int64 -> ``(B,)``: for every sample another one of its class, or itself if there is no other.

    The samples of each class are put in random order; each takes the next one, and the last takes the first. The
    partners are therefore a permutation, and all other samples of the class are equally likely. The host reads no
    labels: there is no loop over classes and no synchronisation.
    """
    shuffle = permutation(len(labels), generator).to(labels.device)
    shuffled = labels[shuffle]
    order = torch.argsort(shuffled, stable=True)
    by_class = shuffled[order].contiguous()
    position = torch.arange(len(labels), device=labels.device)
    first = torch.searchsorted(by_class, by_class)
    last = torch.searchsorted(by_class, by_class, right=True) - 1
    following = torch.where(position == last, first, position + 1)
    samples = shuffle[order]
    partner = torch.empty_like(samples)
    partner[samples] = samples[following]
    return partner


def boxes(
    alpha: float, size: tuple[int, ...], count: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The box of CutMix in any number of dimensions: bounds ``(S,)`` or ``(count, S)`` int64, on the CPU.

    lambda ~ Beta(alpha, alpha); the sides are ``size * (1 - lambda) ** (1 / S)``, the centre is uniform, and the box is
    clipped at the edges (Yun et al., arXiv 1905.04899, where S = 2).
    """
    extent = torch.tensor(size)
    share = (1 - beta(alpha, count, generator)).pow(1 / len(size)).unsqueeze(-1)
    half = (extent * share / 2).long()
    shape = (len(size),) if count is None else (count, len(size))
    centre = (torch.rand(shape, generator=generator, dtype=torch.float64) * extent).long()
    return (centre - half).clamp(min=0), torch.minimum(centre + half, extent)
