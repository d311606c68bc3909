"""Means over seeds, and differences that are taken seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Args:
        mean: over the seeds.
        sd: the sample standard deviation (n - 1); None for a single seed.
        seeds: how many.
    """

    mean: float
    sd: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """How far a row is from its baseline.

    Args:
        mean: of the differences of runs with the same seed.
        low, high: the ends of the confidence interval of that mean, by Student's t; None for a single seed.
        seeds: how many pairs.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int


def spread(values: Mapping[int, float]) -> Spread | None:
    """Figures by seed -> mean and deviation; None without any.

    >>> spread({0: 1.0, 1: 2.0, 2: 6.0})
    Spread(mean=3.0, sd=2.6457513110645907, seeds=3)
    """
    if not values:
        return None
    found = list(values.values())
    return Spread(fmean(found), stdev(found) if len(found) > 1 else None, len(found))


def paired(values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95) -> Difference | None:
    """Figures of two rows by seed -> the mean difference and its interval; seeds that one of them lacks are left out.

    The interval is that of a paired t-test, exact where differences are normal. With three seeds it is wide, as it has
    to be: 4.3 standard errors to each side.

    >>> paired({0: 2.0, 1: 4.0}, {0: 1.0, 1: 1.0, 2: 5.0}).mean
    2.0
    """
    from scipy.stats import t

    both = sorted(values.keys() & baseline.keys())
    apart = [values[seed] - baseline[seed] for seed in both]
    if not apart:
        return None
    mean = fmean(apart)
    if len(apart) == 1:
        return Difference(mean, None, None, 1)
    half = float(t.ppf((1 + confidence) / 2, len(apart) - 1)) * stdev(apart) / math.sqrt(len(apart))
    return Difference(mean, mean - half, mean + half, len(apart))
