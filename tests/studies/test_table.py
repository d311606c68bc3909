"""Tables: the right numbers in the right places, and no text that breaks a format."""

import csv
import json
from io import StringIO

import pytest

from metamixer.studies.results import Line
from metamixer.studies.study_file import Study
from metamixer.studies.table import Table
from metamixer.studies.table_notes import crossed, machines, unequal

NASTY = "a|b_$%<i>"


@pytest.fixture
def study():
    return Study.of(
        {
            "title": "Trial & error",
            "methods": {"dml": "dml", NASTY: "kdcl"},
            "seeds": [0, 1],
            "baseline": {"methods": "dml"},
            "published": [{"where": {"methods": NASTY}, "figure": "74.1", "source": "arXiv 1"}],
            "figures": ["accuracy", "nll"],
        }
    )


@pytest.fixture
def table(study):
    accuracy = [0.70, 0.72, 0.71, 0.75]
    figures = {cell: {"accuracy": value, "nll": 1 - value} for cell, value in zip(study.cells, accuracy, strict=True)}
    return Table.of(study, figures, ["A note of 5 %."])


def test_numbers(table):
    first, second = (table.cells(entry) for entry in table.entries)
    assert table.header == [
        "method", "seeds", "accuracy, mean of peers, last epoch (%)", "difference", "NLL, mean of peers (nats)",
        "published (not measured here)",
    ]  # fmt: skip
    assert first == ["dml", "2", "71.0 ± 1.4", "baseline", "0.290 ± 0.014", "–"]
    # Differences of 1 and 3 points: 2 ± 12.706 * sqrt(2) / sqrt(2).
    assert second == [NASTY, "2", "73.0 ± 2.8", "+2.0 [−10.7, +14.7]", "0.270 ± 0.028", "74.1 (arXiv 1)"]
    assert "seeds 0, 1" in table.caption
    assert "95 %" in table.caption


def test_no_minus_before_a_zero(study):
    accuracy = {cell: {"accuracy": value} for cell, value in zip(study.cells, [0.7, 0.7, 0.6999, 0.6999], strict=True)}
    assert Table.of(study, accuracy).cells(Table.of(study, accuracy).entries[1])[3] == "+0.0 [+0.0, +0.0]"


def test_markdown_has_one_cell_for_each_column(table):
    text = table.as_markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    columns = [line.replace("\\|", "").count("|") for line in lines]
    assert columns == [7] * 4
    assert r"a\|b\_$%\<i\>" in text
    assert "\n- A note of 5 %." in text


def test_latex_escapes_its_signs(table):
    text = table.as_latex()
    assert r"a|b\_\$\%<i>" in text
    assert r"Trial \& error" in text
    assert r"$\pm$" in text
    assert "±" not in text
    assert "−" not in text
    assert text.count(r"\\") == 3


def test_csv_has_plain_numbers(table):
    first, second = csv.DictReader(StringIO(table.as_csv()))
    assert float(first["accuracy_mean"]) == pytest.approx(0.71)
    assert first["accuracy_difference"] == ""
    assert float(second["accuracy_difference"]) == pytest.approx(0.02)
    assert float(second["nll_sd"]) == pytest.approx(0.02 * 2**0.5)


def test_json_has_the_table_and_the_numbers(table):
    found = json.loads(json.dumps(table.as_dict()))
    assert found["table"]["columns"] == table.header
    assert found["table"]["rows"][0] == table.cells(table.entries[0])
    assert found["rows"][1]["differences"]["accuracy"]["seeds"] == 2


def test_runs_that_are_missing_leave_dashes(study):
    table = Table.of(study, {study.cells[0]: {"accuracy": 0.7}})
    assert [table.cells(entry)[1:4] for entry in table.entries] == [["1", "70.0", "baseline"], ["0", "–", "–"]]


def test_unequal_recipes_are_told():
    study = Study.of({"methods": {"dml": "dml", "slow": ["loss=kdcl", "optim.lr=0.01"]}, "mixers": ["none"]})
    assert unequal(study) == ["The recipes are not equal: optim.lr is 0.05 for dml + none, 0.01 for slow + none."]
    methods = {"dml": "dml", "one": ["loss=one", "peers=[{name: resnet8, branches: 2}]"]}
    study = Study.of({"methods": methods, "mixers": ["none"]})
    assert unequal(study) == [
        "The recipes are not equal: peers is resnet20 and resnet20 for dml + none, resnet8 (branches=2) for one + none."
    ]
    lengths = {"short": ["train.epochs=3", "mixer=mixup"], "long": ["train.epochs=5"]}
    assert not unequal(Study.of({"methods": ["dml"], "settings": lengths}))
    assert not unequal(Study.of({"methods": ["dml", "kdcl"], "mixers": ["none", "mixup"], "data": {"x": {"seed": 1}}}))


def test_other_machines_are_told():
    one = Line(seed=0, digest="0" * 16, metrics={}, machine="P", threads=1, versions={"torch": "2.13"})
    other = one.model_copy(update={"threads": 2})
    unknown = Line(seed=0, digest="0" * 16, metrics={})
    assert machines([one, other]) == ["Runs are of several kinds: threads 1, 2."]
    assert machines([one, unknown, one]) == []


def test_differences_between_machines_are_told(study):
    """Two rows of two seeds: pairs count where both have run, on processors that are known."""

    def note(*names):
        lines = [Line(seed=0, digest="0" * 16, metrics={}, machine=name) for name in names]
        return crossed(study, dict(zip(study.cells, lines, strict=False)))

    assert [cell.seed for cell in study.cells] == [0, 1, 0, 1]
    assert note("P", "P", "P", "Q") == [
        "1 of 2 differences of a seed are between two processors, which adds noise to them."
    ]
    assert note("P", "P", "Q") == ["1 of 1 differences of a seed are between two processors, which adds noise to them."]
    assert note("P", "Q", "P", "Q") == note("P", "P") == note("P", None, None, "P") == []
