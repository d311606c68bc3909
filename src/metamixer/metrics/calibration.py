"""Calibration: reliability bins, ECE, and temperature scaling.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from metamixer.core.json_values import Count, Maybe
from metamixer.metrics.classification import checked

BINS = 15
LOWEST, HIGHEST = 0.01, 100.0
"""Between these a temperature is looked for."""


@dataclass(frozen=True)
class Reliability:
    """Images by the confidence with which their class was named.

    Args:
        edges: of the bins, one more than there are; a bin holds its upper edge.
        count: images in each bin.
        confidence: their mean confidence; None for an empty bin.
        accuracy: the share of them that were named rightly; None for an empty bin.
    """

    edges: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    count: tuple[Count, ...] = ()
    confidence: tuple[Maybe, ...] = ()
    accuracy: tuple[Maybe, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether there are bins, and as many of each as there should be; a file may lack some."""
        bins = len(self.count)
        return bool(bins) and len(self.edges) == bins + 1 and bins == len(self.confidence) == len(self.accuracy)

    @property
    def bars(self) -> list[tuple[float, float, int, float, float]]:
        """Of every bin with images: its two edges, the number of images, their accuracy and mean confidence."""
        columns = (self.edges, self.edges[1:], self.count, self.accuracy, self.confidence)
        return [
            (low, high, count, right, sure)
            for low, high, count, right, sure in zip(*columns, strict=False)
            if count and right is not None and sure is not None
        ]

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean over images of their bin's ``|accuracy - confidence|``."""
        return sum(n * abs(sure - right) for _, _, n, right, sure in self.bars) / sum(self.count)

    @property
    def gap(self) -> float:
        """Mean confidence - accuracy over all images: above 0 is overconfident."""
        return sum(n * (sure - right) for _, _, n, right, sure in self.bars) / sum(self.count)


def reliability(log_probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """``(N, C), (N,) ->`` bins of equal width; the confidence is the probability of the likeliest class.

    >>> found = reliability(torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log(), torch.tensor([0, 1]))
    >>> round(found.ece, 6), round(found.gap, 6), found.count[13]
    (0.4, 0.4, 2)
    """
    best = checked(log_probabilities, labels).max(1)
    sure, right = best.values.exp(), (best.indices == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(sure, edges[1:-1].to(sure.device))
    count = torch.bincount(place, minlength=bins)

    def means(values: Tensor) -> tuple[float | None, ...]:
        sums = torch.bincount(place, values, minlength=bins)
        return tuple(s / n if n else None for s, n in zip(sums.tolist(), count.tolist(), strict=True))

    return Reliability(tuple(edges.tolist()), tuple(count.tolist()), means(sure), means(right))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T for which ``softmax(logits / T)`` has the least negative log-likelihood: ``(N, C), (N,) -> T``.

    Fit it on images that neither trained the network nor are reported on. Above 1 it takes confidence away. Of an
    ensemble the logits are the logs of its mean probabilities. The likelihood has one maximum in log T, so a bounded
    scalar search finds it. Where none is inside of [0.01, 100], it ends near a bound: a network that is right on every
    image would have its temperature at 0, one that is worse than chance at infinity.

    Raises:
        ValueError: a shape does not fit, or a logit is not finite; -inf is accepted for a class that is not the right
            one: it is masked.
    """
    from scipy.optimize import minimize_scalar

    scores = checked(logits, labels)
    if not has_temperature(scores, labels):
        raise ValueError("a logit is not finite; there is no temperature for a network that diverged")
    # Without it, dividing by a small T would lose the differences beside the common size.
    scores = scores - scores.gather(1, labels[:, None])
    found = minimize_scalar(
        lambda log_t: float((scores / math.exp(log_t)).logsumexp(1).mean()),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)


def has_temperature(logits: Tensor, labels: Tensor) -> bool:
    """Whether ``(N, C)`` logits are finite, but for classes that -inf masks: a network that diverged has none."""
    wrong = logits.isnan() | logits.isposinf()
    return not wrong.any() and bool(logits.gather(1, labels[:, None]).isfinite().all())


def cooled(logits: Tensor, temperature: float) -> Tensor:
    """``(..., C) -> (..., C)`` log-probabilities at a temperature, float64."""
    return (logits.double() / temperature).log_softmax(-1)
