"""Means over seeds, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Spread:
    """The distribution of a metric over seeds.

    Args:
        mean: mean over the seeds.
        sd: sample standard deviation (n - 1); None for a single seed.
        seeds: number of seeds.
    """

    mean: float
    sd: float | None
    seeds: int


@dataclass(frozen=True)
class Difference:
    """The difference of a row from its baseline.

    Args:
        mean: mean of the differences of runs with the same seed.
        low, high: bounds of the confidence interval of that mean, by Student's t; None for a single seed.
        seeds: number of pairs.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Pooled:
    """The mean over strata, such as data sets, of the mean difference in each.

    Args:
        mean: mean with equal weights of the strata, whatever their numbers of pairs.
        low, high: bounds of its confidence interval; None if a stratum has a single pair.
        freedom: degrees of freedom of that interval; None without an interval, or if the variance is 0.
        strata: number of strata with pairs.
        pairs: number of pairs in all strata.
    """

    mean: float
    low: float | None
    high: float | None
    freedom: float | None
    strata: int
    pairs: int


def spread(values: Mapping[int, float]) -> Spread | None:
    """Mean and deviation of values by seed; None if there are none.

    >>> spread({0: 1.0, 1: 2.0, 2: 6.0})
    Spread(mean=3.0, sd=2.6457513110645907, seeds=3)
    """
    if not values:
        return None
    found = list(values.values())
    return Spread(fmean(found), stdev(found) if len(found) > 1 else None, len(found))


def paired(values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95) -> Difference | None:
    """The mean difference of two rows and its confidence interval, over the seeds that both have.

    The interval is that of a paired t-test, which is exact for normally distributed differences. With three seeds it is
    wide: 4.3 standard errors to each side.

    >>> paired({0: 2.0, 1: 4.0}, {0: 1.0, 1: 1.0, 2: 5.0}).mean
    2.0
    """
    apart = differences(values, baseline)
    if not apart:
        return None
    mean = fmean(apart)
    if len(apart) == 1:
        return Difference(mean, None, None, 1)
    half = _quantile(confidence, len(apart) - 1) * stdev(apart) / math.sqrt(len(apart))
    return Difference(mean, mean - half, mean + half, len(apart))


def differences(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """The differences for each seed that both rows have."""
    return [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]


def pooled(strata: Sequence[Sequence[float]], confidence: float = 0.95) -> Pooled | None:
    r"""The stratified mean of paired differences and its confidence interval; empty strata are left out.

    For S strata with :math:`n_s` differences of mean :math:`d_s` and sample variance :math:`v_s`:
    :math:`D = \frac1S \sum d_s`, :math:`\mathrm{Var}(D) = \frac1{S^2} \sum v_s / n_s`, and the interval is that of
    Student's t with the degrees of freedom of Welch and Satterthwaite,
    :math:`(\sum v_s / n_s)^2 / \sum \frac{(v_s / n_s)^2}{n_s - 1}`. Variances may differ between strata. The strata are
    fixed: the interval holds for these data sets, not for data sets in general.

    Source: B. L. Welch, The generalization of "Student's" problem when several different population variances are
    involved, Biometrika 34, 1947.

    >>> pooled([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]]).mean
    1.5
    """
    strata = [each for each in strata if each]
    if not strata:
        return None
    pairs = sum(map(len, strata))
    mean = fmean(map(fmean, strata))
    if any(len(each) == 1 for each in strata):
        return Pooled(mean, None, None, None, len(strata), pairs)
    parts = [stdev(each) ** 2 / len(each) for each in strata]
    if not sum(parts):
        return Pooled(mean, mean, mean, None, len(strata), pairs)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, strata, strict=True))
    half = _quantile(confidence, freedom) * math.sqrt(sum(parts)) / len(strata)
    return Pooled(mean, mean - half, mean + half, freedom, len(strata), pairs)


def _quantile(confidence: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, freedom))
