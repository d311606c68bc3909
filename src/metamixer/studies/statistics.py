"""Means over seeds, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Spread:
    """A metric over seeds.

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


@dataclass(frozen=True)
class Pooled:
    """The mean over strata, such as data sets, of the mean difference in each.

    Args:
        mean: each stratum counts the same, whatever its number of pairs.
        low, high: the ends of its confidence interval; None where a stratum has a single pair.
        freedom: the degrees of freedom of that interval; None without one, or where no difference varies.
        strata: how many there are with pairs.
        pairs: in all of them.
    """

    mean: float
    low: float | None
    high: float | None
    freedom: float | None
    strata: int
    pairs: int


def spread(values: Mapping[int, float]) -> Spread | None:
    """Values by seed -> mean and deviation; None without any.

    >>> spread({0: 1.0, 1: 2.0, 2: 6.0})
    Spread(mean=3.0, sd=2.6457513110645907, seeds=3)
    """
    if not values:
        return None
    found = list(values.values())
    return Spread(fmean(found), stdev(found) if len(found) > 1 else None, len(found))


def paired(values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95) -> Difference | None:
    """Values of two rows by seed -> the mean difference and its interval; seeds that one of them lacks are left out.

    The interval is that of a paired t-test, exact where differences are normal. With three seeds it is wide, as it has
    to be: 4.3 standard errors to each side.

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
    """Seed by seed, of the seeds that both rows have."""
    return [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]


def pooled(strata: Sequence[Sequence[float]], confidence: float = 0.95) -> Pooled | None:
    r"""Paired differences by stratum -> their stratified mean and its interval; strata without any are left out.

    Of S strata with :math:`n_s` differences of mean :math:`d_s` and sample variance :math:`v_s`:
    :math:`D = \frac1S \sum d_s`, :math:`\mathrm{Var}(D) = \frac1{S^2} \sum v_s / n_s`, and the interval is that of
    Student's t with the degrees of freedom of Welch and Satterthwaite,
    :math:`(\sum v_s / n_s)^2 / \sum \frac{(v_s / n_s)^2}{n_s - 1}`. Strata need not vary equally. Seeds and strata are
    those that were measured: the interval is about these data sets, not about data sets in general.

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
