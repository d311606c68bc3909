"""Means, deviations and paired intervals against SciPy and NumPy."""

import numpy as np
import pytest
from scipy import stats

from metamixer.studies.statistics import Difference, Pooled, Spread, paired, pooled, spread


@pytest.mark.parametrize("seeds", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_is_that_of_the_paired_t_test(seeds, confidence):
    draw = np.random.default_rng(seeds)
    rows = draw.normal(70, 2, (2, seeds))
    one, other = ({seed: float(value) for seed, value in enumerate(row)} for row in rows)
    found = paired(one, other, confidence)
    wanted = stats.ttest_rel(*rows).confidence_interval(confidence)
    assert found.mean == pytest.approx(np.mean(rows[0] - rows[1]))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.seeds == seeds


def test_seeds_that_one_row_lacks_are_left_out():
    assert paired({0: 3.0, 1: 5.0, 2: 9.0}, {1: 4.0, 2: 7.0, 3: 0.0}).mean == 1.5
    assert paired({0: 3.0}, {1: 4.0}) is None
    assert paired({0: 3.0}, {0: 4.0}) == Difference(-1.0, None, None, 1)


def test_the_spread_is_the_sample_deviation():
    values = [0.1, 0.4, 0.2, 0.25]
    found = spread(dict(enumerate(values)))
    assert (found.mean, found.sd, found.seeds) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
        4,
    )
    assert spread({7: 0.5}) == Spread(0.5, None, 1)
    assert spread({}) is None


def slowly(strata, confidence):
    """Every sum written out, in float64."""
    means, squares = [], []
    for each in strata:
        mean = 0.0
        for value in each:
            mean += value / len(each)
        variance = 0.0
        for value in each:
            variance += (value - mean) ** 2 / (len(each) - 1)
        means.append(mean)
        squares.append(variance / len(each))
    count = len(strata)
    error = (sum(squares) / count**2) ** 0.5
    freedom = sum(squares) ** 2 / sum(square**2 / (len(each) - 1) for square, each in zip(squares, strata, strict=True))
    interval = stats.t(freedom, loc=sum(means) / count, scale=error).interval(confidence)
    return sum(means) / count, *interval, freedom


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (2, 5), (3,), (4, 2, 7)], ids=str)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_pooled_against_sums_written_out(sizes, confidence):
    draw = np.random.default_rng(sum(sizes))
    strata = [draw.normal(0.5, 1 + place, size).tolist() for place, size in enumerate(sizes)]
    found = pooled(strata, confidence)
    assert (found.mean, found.low, found.high, found.freedom) == pytest.approx(slowly(strata, confidence))
    assert (found.strata, found.pairs) == (len(sizes), sum(sizes))


def test_one_stratum_is_the_paired_t_test():
    one, other = {0: 3.0, 1: 5.0, 2: 9.0}, {0: 2.0, 1: 4.5, 2: 7.0}
    alone, plain = pooled([[1.0, 0.5, 2.0]]), paired(one, other)
    assert (alone.mean, alone.low, alone.high) == pytest.approx((plain.mean, plain.low, plain.high))
    assert alone.freedom == pytest.approx(2)


def test_two_strata_are_welchs_test():
    """The mean of a and -b is half the difference of their means, whose interval SciPy knows."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(1, 0.5, 4), draw.normal(0, 3, 6)
    found = pooled([a.tolist(), (-b).tolist()])
    wanted = stats.ttest_ind(a, b, equal_var=False)
    interval = wanted.confidence_interval(0.95)
    assert (2 * found.low, 2 * found.high) == pytest.approx((interval.low, interval.high))
    assert found.freedom == pytest.approx(wanted.df)


@pytest.mark.parametrize(("seeds", "spreads"), [(3, (1, 1, 1, 1)), (3, (0.3, 1, 2, 0.5)), (5, (1, 4, 1, 1))], ids=str)
def test_pooled_intervals_hold_the_truth_as_often_as_they_say(seeds, spreads):
    """Four data sets with gains of their own: 95 % intervals around the mean gain, over 4,000 simulated studies."""
    draw, gains, held, above = np.random.default_rng(1), np.array([2.0, 0.0, -0.5, 1.0]), 0, 0
    for _ in range(4000):
        found = pooled((gains[:, None] + draw.normal(0, 1, (4, seeds)) * np.array(spreads)[:, None]).tolist())
        held += found.low <= gains.mean() <= found.high
        above += found.low > gains.mean()
    assert 0.935 <= held / 4000 <= 0.98, held / 4000
    assert above / 4000 == pytest.approx((1 - held / 4000) / 2, abs=0.01), "as often too high as too low"


def test_pooled_without_enough():
    assert pooled([]) is None
    assert pooled([[], []]) is None
    assert pooled([[1.0, 2.0], [], [3.0]]) == Pooled(2.25, None, None, None, 2, 3)
    assert pooled([[1.0, 1.0], [2.0, 2.0]]) == Pooled(1.5, 1.5, 1.5, None, 2, 4)
