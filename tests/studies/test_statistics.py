"""Means, deviations and paired intervals against SciPy and NumPy."""

import numpy as np
import pytest
from scipy import stats

from metamixer.studies.statistics import Difference, Spread, paired, spread


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
