"""The arithmetic of samples, ratios and bars."""

import pytest

from benchmarks.bars import BARS, Bar, judge
from benchmarks.results import Figure, Measured, Section, Suite, difference, plainly, ratio, ratios

SLOW = Measured("slow", (4.0, 2.0, 9.0), items=18)
FAST = Measured("fast", (2.0, 2.0, 3.0))


def test_a_ratio_is_paired_by_round():
    found = ratio("slow / fast", SLOW, FAST, bar="two", times=2)
    assert found.samples == (1.0, 0.5, 1.5)
    assert found.median == 1.0
    assert found.best == 2.0 / (2 * 2.0)  # of the minima, whatever their rounds
    assert found.bar == "two"


def test_a_difference_keeps_the_unit():
    found = difference("more", SLOW, FAST)
    assert (found.samples, found.best, found.unit) == ((2.0, 0.0, 6.0), 0.0, "s")


def test_median_best_and_rate():
    assert (SLOW.median, SLOW.best, SLOW.rate) == (4.0, 2.0, 4.5)
    assert FAST.rate is None
    assert Measured("copy", (3.0, 5.0), "GB/s", higher=True).best == 5.0
    assert plainly(SLOW, bar="help").samples == SLOW.samples


def test_rounds_have_to_match():
    with pytest.raises(ValueError, match="shorter"):
        ratio("", SLOW, Measured("short", (1.0,)))


def test_ratios_of_what_was_measured_only():
    found = ratios((SLOW, FAST), [("slow", "fast", 1.0, ""), ("gone", "fast", 1.0, ""), ("slow", "fast", 4.0, "four")])
    assert [figure.name for figure in found] == ["slow / fast", "slow / 4 x fast"]
    assert found[1].samples == tuple(sample / 4 for sample in found[0].samples)


@pytest.mark.parametrize(
    ("higher", "value", "verdict"),
    [(False, 1.0, "aim"), (False, 1.9, "pass"), (False, 2.1, "FAIL"), (True, 4.0, "aim"), (True, 2.5, "pass"),
     (True, 1.0, "FAIL")],
)  # fmt: skip
def test_verdicts(higher, value, verdict):
    bar = Bar("x", "x", must=2.0, aim=3.0 if higher else 1.5, higher=higher)
    assert bar.verdict(value) == verdict


def test_every_bar_is_judged_or_said_not_to_be():
    sections = (Section("a", figures=(Figure("x", (1.5, 1.0), 1.0, bar="two"),)),
                Section("b", figures=(Figure("y", (1.0,), 1.0, bar="two"), Figure("z", (1.0,), 1.0))))  # fmt: skip
    rows = judge([Suite("step", sections, 1.0)])
    assert [(row.where, row.verdict) for row in rows if row.bar.key == "two"] == [("a", "FAIL"), ("b", "aim")]
    assert {row.verdict for row in rows if row.bar.key != "two"} == {"not measured"}
    assert {row.bar.key for row in rows} == {bar.key for bar in BARS}
