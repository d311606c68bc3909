"""Differences as a plot: every mark stands where its number is."""

import json
import re

import pytest

from metamixer.report import report
from metamixer.report.forest_plot import forests

RESULTS = {
    "table": {"caption": "C", "columns": ["a"], "rows": [["x"]]},
    "figures": {"accuracy": {"title": "accuracy (%)", "scale": 100}, "nll": {"title": "NLL", "scale": 1}},
    "rows": [
        {"label": "base", "differences": {}},
        {"label": "<b>one", "differences": {"accuracy": {"mean": 0.02, "low": -0.01, "high": 0.05}}},
        {"label": "two", "differences": {"accuracy": {"mean": -0.04, "low": None, "high": None}}},
    ],
}


def test_places_are_linear_in_the_numbers():
    (made,) = forests(RESULTS)
    assert made["title"] == "accuracy (%)"
    (x0, first), (x1, last) = made["ticks"][0], made["ticks"][-1]

    def number(x):
        return float(first) + (x - x0) / (x1 - x0) * (float(last) - float(first))

    assert number(made["zero"]) == pytest.approx(0, abs=0.01)
    one, two = made["rows"]
    assert number(one["x"]) == pytest.approx(2, abs=0.01)
    assert [number(end) for end in one["ends"]] == pytest.approx([-1, 5], abs=0.01)
    assert number(two["x"]) == pytest.approx(-4, abs=0.01)
    assert two["ends"] is None
    assert (one["text"], two["text"]) == ("+2 [-1, +5]", "-4")
    assert all(made["left"] <= x <= made["right"] for x in (*one["ends"], two["x"]))


def test_nothing_to_compare_is_no_plot():
    assert forests({"table": {}}) == []
    assert forests({**RESULTS, "rows": [{"label": "x", "differences": {}}]}) == []
    with pytest.raises(ValueError, match="another shape"):
        forests({**RESULTS, "rows": [{"differences": 3}]})


def test_the_page_shows_it(tmp_path):
    (tmp_path / "study.yaml").write_text("title: t")
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    page = report([tmp_path], tmp_path / "page.html").read_text()
    assert "accuracy (%): difference from the baseline" in page
    assert "&lt;b&gt;one" in page
    assert "<b>one" not in page
    assert len(re.findall(r'<circle class="dot c0"', page)) == 2
