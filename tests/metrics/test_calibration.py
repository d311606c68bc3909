"""Bins, errors and temperatures whose values are known."""

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from metamixer.metrics.calibration import HIGHEST, LOWEST, cooled, fit_temperature, reliability
from metamixer.metrics.classification import nll


def two(confidences):
    """Log-probabilities of two classes, of which the first is named."""
    sure = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([sure, 1 - sure], 1).log()


def test_a_case_by_hand():
    # Two bins of two and three images: (0.6, 2/3] with one right of two, (14/15, 1] with three right of three.
    found = reliability(two([0.62, 0.64, 0.95, 0.97, 0.99]), torch.tensor([0, 1, 0, 0, 0]))
    assert found.count[9] == 2
    assert found.count[14] == 3
    assert sum(found.count) == 5
    assert (found.confidence[9], found.accuracy[9]) == pytest.approx((0.63, 0.5))
    assert (found.confidence[14], found.accuracy[14]) == pytest.approx((0.97, 1.0))
    assert found.confidence[0] is None
    assert found.ece == pytest.approx((2 * 0.13 + 3 * 0.03) / 5)
    assert found.gap == pytest.approx((2 * 0.13 - 3 * 0.03) / 5)
    assert len(found.edges) == 16


def test_a_bin_holds_its_upper_edge():
    found = reliability(two([0.5, 1.0]), torch.tensor([0, 0]), bins=4)
    assert found.count == (0, 1, 0, 1)


def test_all_right_and_all_wrong():
    sure = two([1.0, 1.0, 1.0])
    right = reliability(sure, torch.zeros(3, dtype=torch.int64))
    assert (right.ece, right.gap) == (0, 0)
    wrong = reliability(sure, torch.ones(3, dtype=torch.int64))
    assert (wrong.ece, wrong.gap) == (1, 1)
    shy = reliability(two([0.6, 0.6]), torch.tensor([0, 0]))
    assert (shy.ece, shy.gap) == pytest.approx((0.4, -0.4))


def draw(count, scale, seed=0, classes=5):
    """Logits, and labels drawn from the distribution that the logits themselves say."""
    g = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=g, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]


@pytest.mark.parametrize("seed", range(3))
def test_ece_as_torchmetrics_counts_it(seed):
    logits, labels = draw(500, 1.5, seed)
    shares = (3 * logits).softmax(1)
    theirs = multiclass_calibration_error(shares, labels, 5, n_bins=15, norm="l1")
    assert reliability(shares.log(), labels).ece == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(factor):
    logits, labels = draw(20_000, 2.0)
    found = fit_temperature(factor * logits, labels)
    assert found == pytest.approx(factor, rel=0.04)
    assert reliability(cooled(factor * logits, found), labels).ece < 0.02
    if factor != 1:
        assert reliability(cooled(factor * logits, 1.0), labels).ece > 0.05


def test_no_other_temperature_is_better():
    logits, labels = draw(300, 2.0, seed=1)
    found = fit_temperature(5 * logits, labels)
    best = nll(cooled(5 * logits, found), labels)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2):
        assert nll(cooled(5 * logits, factor * found), labels) > best


def test_where_there_is_no_best_temperature_it_ends_at_a_bound():
    labels = torch.arange(3)
    assert LOWEST <= fit_temperature(torch.eye(3), labels) < 0.03  # the loss is 0 there, to the last bit
    assert fit_temperature(-torch.eye(3), labels) == pytest.approx(HIGHEST, rel=1e-3)
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(torch.full((3, 3), math.nan), labels)


def test_the_ensembles_temperature_acts_on_the_log_of_its_mean():
    from metamixer.metrics.diversity import ensemble

    logits, labels = draw(5_000, 2.0, seed=2)
    others = logits + 0.3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mean = ensemble(torch.stack([logits, others]).log_softmax(-1))
    # Sharpened by 1 / 2, a temperature of 2 smaller is right: log-probabilities are logits of themselves.
    assert fit_temperature(mean * 2, labels) == pytest.approx(2 * fit_temperature(mean, labels), rel=1e-3)


def test_masked_classes_leave_the_temperature_as_it_is():
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 3, generator=draw) * 3, torch.randint(0, 3, (200,), generator=draw)
    masked = torch.cat([logits, torch.full((200, 1), -torch.inf)], 1)
    assert fit_temperature(masked, labels) == pytest.approx(fit_temperature(logits, labels))
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="not finite"):
            fit_temperature(torch.cat([logits, torch.full((200, 1), wrong)], 1), labels)
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(masked, torch.full_like(labels, 3))
