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
"""The range in which a temperature is searched."""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: images in bins of the confidence of their prediction.

    Args:
        edges: edges of the bins, one more than there are bins; a bin includes its upper edge.
        count: number of images in each bin.
        confidence: mean confidence in each bin; None for an empty bin.
        accuracy: accuracy in each bin; None for an empty bin.
    """

    edges: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    count: tuple[Count, ...] = ()
    confidence: tuple[Maybe, ...] = ()
    accuracy: tuple[Maybe, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether there are bins and all fields have matching lengths, which a file may lack."""
        bins = len(self.count)
        return bool(bins) and len(self.edges) == bins + 1 and bins == len(self.confidence) == len(self.accuracy)

    @property
    def bars(self) -> list[tuple[float, float, int, float, float]]:
        """Both edges, number of images, accuracy and mean confidence of every bin with images."""
        columns = (self.edges, self.edges[1:], self.count, self.accuracy, self.confidence)
        return [
            (low, high, count, right, sure)
            for low, high, count, right, sure in zip(*columns, strict=False)
            if count and right is not None and sure is not None
        ]

    @property
    def ece(self) -> float:
        """The expected calibration error: the mean over images of ``|accuracy - confidence|`` of their bin."""
        return sum(n * abs(sure - right) for _, _, n, right, sure in self.bars) / sum(self.count)

    @property
    def gap(self) -> float:
        """Mean confidence - accuracy over all images: above 0 is overconfident."""
        return sum(n * (sure - right) for _, _, n, right, sure in self.bars) / sum(self.count)


def reliability(log_probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """``(N, C), (N,) ->`` bins of equal width; the confidence is the probability of the predicted class.

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
    """The T for which ``softmax(logits / T)`` has the smallest negative log-likelihood: ``(N, C), (N,) -> T``.

    Fit it on images that were used neither for training nor for the reported metrics. T > 1 reduces the confidence.
    The logits of an ensemble are the logs of its mean probabilities. The likelihood has one maximum in log T, so a
    bounded scalar search finds it. If it is outside [0.01, 100], the search ends near a bound: the best temperature of
    a network that is correct on every image is 0, and that of a network worse than chance is infinite.

    Raises:
        ValueError: a shape is wrong, or a logit is not finite; -inf is accepted for a masked class that is not the
            label.
    """
    from scipy.optimize import minimize_scalar

    scores = checked(logits, labels)
    if not has_temperature(scores, labels):
        raise ValueError("a logit is not finite; there is no temperature for a network that diverged")
    # Otherwise division by a small T loses the differences compared with the common offset.
    scores = scores - scores.gather(1, labels[:, None])
    found = minimize_scalar(
        lambda log_t: float((scores / math.exp(log_t)).logsumexp(1).mean()),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)


def has_temperature(logits: Tensor, labels: Tensor) -> bool:
    """Whether ``(N, C)`` logits are finite except for masked classes (-inf); otherwise the network diverged."""
    wrong = logits.isnan() | logits.isposinf()
    return not wrong.any() and bool(logits.gather(1, labels[:, None]).isfinite().all())


def cooled(logits: Tensor, temperature: float) -> Tensor:
    """``(..., C) -> (..., C)`` log-probabilities at a temperature, float64."""
    return (logits.double() / temperature).log_softmax(-1)
