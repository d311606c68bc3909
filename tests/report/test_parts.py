"""Charts and cells by themselves."""

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metamixer.evaluation.report import read_report
from metamixer.report.network_tables import agreement
from metamixer.report.svg_charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Line, drawn, reliability, ticks
from metamixer.report.tables import gain, level, of_values, share
from tests.report.made import evaluation

FINITE = st.floats(-1e99, 1e99)


@given(FINITE, FINITE)
def test_ticks_cover_the_values(a, b):
    low, high = sorted((a, b))
    found = ticks(low, high)
    room = 1e-6 * max(abs(low), abs(high))
    assert found[0] <= low + room
    assert found[-1] >= high - room
    assert 2 <= len(found) <= 8
    steps = [two - one for one, two in pairwise(found)]
    assert all(step > 0 for step in steps)


@given(st.lists(st.none() | FINITE, min_size=1, max_size=40))
@example([-9.999999999999996e98, -9.999999999999998e98])
@example([-9.999999999999996e98, -9.999999999999997e98])
def test_charts_stay_inside_of_their_frame(values):
    xs = tuple(float(k + 1) for k in range(len(values)))
    found = drawn(Chart("t", "epoch", xs, (Line("a", tuple(values), 0),)))
    numbers = found["lines"][0]["path"].replace("M", " ").replace("L", " ").split()
    for x, y in zip(map(float, numbers[::2]), map(float, numbers[1::2]), strict=True):
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP - 0.01 <= y <= HEIGHT - BOTTOM + 0.01
    assert len(numbers) == 2 * sum(value is not None for value in values)


def test_a_line_is_where_its_values_are():
    found = drawn(Chart("t", "epoch", (1.0, 2.0, 3.0), (Line("a", (0.0, None, 1.0), 0),), shares=True))
    assert found["lines"][0]["path"] == f"M{LEFT:.1f} {HEIGHT - BOTTOM:.1f}L{WIDTH - RIGHT:.1f} {TOP:.1f}"
    assert found["lines"][0]["last"] == "100.0 %"
    assert found["data"]["lines"][0]["values"] == [0, None, 1]


def _score(values):
    return read_report({"peers": [values]}).peers[0]


def test_bars_of_reliability():
    bins = {"edges": [0, 0.5, 1], "count": [0, 4], "confidence": [None, 0.8], "accuracy": [None, 0.5]}
    found = reliability(_score({"name": "a", "ece": 0.3, "reliability": bins}))
    (bar,) = found["bars"]
    assert (bar["height"], bar["gap_height"], bar["over"]) == (100, 60, True)
    assert bar["gap_y"] + bar["gap_height"] == bar["y"] == found["top"] + 100
    assert "expected calibration error 30.0 %" in found["label"]
    assert reliability(_score({"name": "a", "reliability": {"count": [1]}})) is None


@pytest.mark.parametrize(
    ("value", "other", "text", "tone"),
    [(0.5, 0.4, "+10.0", "good"), (0.4, 0.5, "-10.0", "bad"), (0.4, 0.4, "+0.0", ""), (None, 0.4, "–", "")],
)
def test_gains(value, other, text, tone):
    cell = gain(value, other)
    assert (cell.text, cell.tone) == (text, tone)


def test_a_gain_that_may_be_chance_has_no_colour():
    assert [gain(0.52, 0.5, images).tone for images in (100, 1000, 10_000)] == ["", "", "good"]
    assert [gain(1.0, 0.0, images).tone for images in (1, 2, 6)] == ["", "", "good"]
    assert gain(0.5, 0.52, 10_000).tone == "bad"


@pytest.mark.parametrize(("gained", "said"), [(0.0132, "1.3 points above"), (-0.004, "0.4 points below")])
def test_an_ensemble_may_be_worse_than_its_peers(gained, said):
    evaluated = evaluation(("a", "b"))
    evaluated["peers"]["ensemble_gain"] = gained
    found = agreement(read_report(evaluated))
    assert (
        found
        == f"All peers predict the same class for 70.0 % of the images. The ensemble is {said} the mean of its peers."
    )


def test_cells_of_plain_values():
    table = of_values(
        "c", ["name", "a", "b"], [["x", "77.1 ± 0.3", 10**400], ["y", "−1.5", math.nan], ["z", "+2 %", True]]
    )
    assert [row[1].value for row in table.rows] == [77.1, -1.5, 2]
    assert [row[2].value for row in table.rows] == [None, None, None]
    assert table.words == {0}
    assert (level(-1), level(0.5), level(2)) == (0, 4, 9)
    assert [share(0.71614, images).text for images in (100, 10_000)] == ["71.6 %", "71.61 %"]
