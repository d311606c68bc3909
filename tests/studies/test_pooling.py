"""Rows against rows over all data sets, from the study file to the table."""

import json

import numpy as np
import pytest

from metamixer.config.yaml_file import RecipeError
from metamixer.studies import Study, Table
from metamixer.studies.statistics import pooled

CONTENT = {
    "recipe": {"peers": ["resnet8", "resnet8"], "train": {"epochs": 2}},
    "mixers": {"none": "none", "CutMix": "cutmix", "Meta|Mixer": "metamixer"},
    "data": {"a": {"train_limit": 5}, "b": {"train_limit": 6}, "c": {"train_limit": 7}},
    "seeds": [3, 4, 5],
    "baseline": {"mixers": "none"},
    "figures": ["accuracy", "nll"],
    "compare": ["accuracy", "nll"],
    "pool": {"over": "data", "of": {"mixers": "Meta|Mixer"}, "against": [{"mixers": "CutMix"}, {"mixers": "none"}]},
}


def figures_of(study):
    """Accuracies by mixer, data set and seed, and the same as figures of the runs."""
    draw = np.random.default_rng(0).uniform(0.4, 0.6, (3, 3, 3))
    values = {
        (mixer, data, seed): float(draw[m, d, s])
        for m, mixer in enumerate(CONTENT["mixers"])
        for d, data in enumerate(CONTENT["data"])
        for s, seed in enumerate(CONTENT["seeds"])
    }
    found = {}
    for cell in study.cells:
        row = dict(cell.row)
        value = values[row["mixers"], row["data"], cell.seed]
        found[cell] = {"accuracy": value, "nll": 2 - value}
    return values, found


def test_rows_against_named_rows_over_all_data_sets():
    study = Study.of(CONTENT)
    values, figures = figures_of(study)
    table = Table.of(study, figures)
    assert [(dict(each.row)["mixers"], dict(each.against)["mixers"]) for each in table.pooled] == [
        ("Meta|Mixer", "CutMix"),
        ("Meta|Mixer", "none"),
    ]
    for each in table.pooled:
        against = dict(each.against)["mixers"]
        strata = [[values["Meta|Mixer", data, s] - values[against, data, s] for s in (3, 4, 5)] for data in "abc"]
        assert each.differences["accuracy"] == pooled(strata)
        assert each.differences["nll"].mean == pytest.approx(-np.mean(strata))


def test_all_formats_have_it():
    study = Study.of(CONTENT)
    _, figures = figures_of(study)
    table = Table.of(study, figures)
    header, first, _ = table.pooled_rows
    assert header[:5] == [
        "row", "against", "strata", "pairs", "difference in accuracy, mean of peers, last epoch (%)",
    ]  # fmt: skip
    apart = table.pooled[0].differences["accuracy"]
    shown = [f"{100 * value:+.1f}".replace("-", "−") for value in (apart.mean, apart.low, apart.high)]
    assert first[:5] == ["Meta|Mixer", "CutMix", "3 of 3", "9", f"{shown[0]} [{shown[1]}, {shown[2]}]"]
    text = table.as_markdown()
    assert "Pooled over data" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| Meta\\|Mixer | CutMix | 3 of 3 | 9 |")]
    assert line.replace("\\|", "").count("|") == 7
    found = json.loads(json.dumps(table.as_dict()))["pooled"]
    assert found["table"]["rows"][0] == first
    assert found["comparisons"][0]["differences"]["accuracy"]["mean"] == apart.mean
    assert Table.of(Study.of({**CONTENT, "pool": None}), {}).as_dict()["pooled"] is None


def test_runs_that_are_missing_are_seen():
    study = Study.of(CONTENT)
    _, figures = figures_of(study)
    some = {cell: found for cell, found in figures.items() if dict(cell.row)["data"] != "b" or cell.seed == 3}
    one = {cell: found for cell, found in some.items() if dict(cell.row)["data"] != "b"}
    assert Table.of(study, some).pooled_rows[1][2:4] == ["3 of 3", "7"]
    assert "[" not in Table.of(study, some).pooled_rows[1][4], "no interval where a data set has a single pair"
    assert Table.of(study, one).pooled_rows[1][2:4] == ["2 of 3", "6"]
    assert Table.of(study, {}).pooled_rows[1][2:] == ["0 of 3", "0", "–", "–"]


def test_rows_that_the_study_does_not_have_are_left_out():
    content = {**CONTENT, "exclude": [{"mixers": "CutMix", "data": "b"}, {"mixers": "none"}], "baseline": {}}
    (each,) = Table.of(Study.of(content), {}).pooled
    assert (dict(each.against)["mixers"], each.strata) == ("CutMix", 2)
    everything = {**CONTENT, "pool": {"against": [{"mixers": "none"}]}}
    assert [dict(each.row)["mixers"] for each in Table.of(Study.of(everything), {}).pooled] == ["CutMix", "Meta|Mixer"]


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"over": "methods", "against": [{"mixers": "none"}]}, "accepted is an axis of this study: mixers, data"),
        ({"over": "seeds", "against": [{"mixers": "none"}]}, "pool.over: 'seeds'"),
        ({"against": [{"mixers": "cutmix"}]}, "pool.against: 'cutmix' is not one of mixers; none, CutMix"),
        ({"of": {"data": "a"}, "against": [{"mixers": "none"}]}, "pool.of: data is the axis of pool.over"),
        ({"against": []}, "pool.against: .*at least 1"),
        ({}, "pool.against: Field required"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit(pool, message):
    with pytest.raises(RecipeError, match=message):
        Study.of({**CONTENT, "pool": pool})
