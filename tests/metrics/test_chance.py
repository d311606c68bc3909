"""Differences that chance explains, against Fisher's exact test summed by hand."""

from math import comb

import pytest

from metamixer.metrics.chance import chance_note, chance_range


def fisher(a, b, n):
    """The two-sided p-value of a and b right answers among n each: all tables with these sums that are no likelier."""
    weights = {k: comb(n, k) * comb(n, a + b - k) for k in range(max(0, a + b - n), min(n, a + b) + 1)}
    return sum(weight for weight in weights.values() if weight <= weights[a]) / sum(weights.values())


@pytest.mark.parametrize("images", [2, 6, 10, 25, 60])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("up", [True, False])
def test_the_smallest_significant_difference(images, share, up):
    right = round(share * images)
    others = range(right + 1, images + 1) if up else range(right - 1, -1, -1)
    expected = next((abs(other - right) / images for other in others if fisher(right, other, images) < 0.05), None)
    found = chance_range(share, images, up=up)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_large_sets_agree_with_the_normal_approximation():
    share, images = 0.6, 10_000
    assert chance_range(share, images) == pytest.approx(1.96 * (2 * share * (1 - share) / images) ** 0.5, rel=0.05)


def test_six_images_decide_nothing_about_a_third():
    assert chance_note(1 / 6, 3 / 6, 6) == "on 6 images and with one seed, any such difference may be chance"
    assert chance_note(0.7, 0.7, 1000) == "on 1,000 images and with one seed, under 4.1 may be chance"
