"""``results.jsonl``: what is written is read, what is damaged is named, and a table needs nothing else."""

import json
import math
import warnings

import pytest

from metamixer.config.yaml_file import RecipeError
from metamixer.studies import Line, Plan, Study, conduct, read_lines, table_of
from metamixer.studies.results import append, join

CONTENT = {
    "recipe": {"data": {"train_limit": 20}, "peers": ["resnet8", "resnet8"], "train": {"epochs": 2}},
    "methods": ["independent", "dml"],
    "seeds": [0, 1],
    "baseline": {"methods": "independent"},
    "figures": ["accuracy", "nll"],
}


def lines_of(study, **more):
    """A line for every run, with an accuracy of 0.50, 0.51, ..."""
    return [
        Line(
            row=dict(cell.row),
            seed=cell.seed,
            digest=cell.digest,
            metrics={"accuracy": 0.5 + number / 100, "nll": 1.0},
            threads=1,
            machine="M",
            versions={"torch": "2"},
            **more,
        )
        for number, cell in enumerate(study.cells)
    ]


@pytest.fixture
def study():
    return Study.of(CONTENT)


def test_lines_come_back_as_they_were(study, tmp_path):
    path = tmp_path / "results.jsonl"
    first, *others = lines_of(study)
    first = first.model_copy(update={"metrics": {"accuracy": 1 / 3, "nll": math.nan}, "later": [1]})
    append(path, [first])
    append(path, others)
    found = read_lines(path)
    assert found[1:] == others
    assert found[0].metrics["accuracy"] == 1 / 3
    assert math.isnan(found[0].metrics["nll"])
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # no NaN, which JSON does not have
    append(tmp_path / "again.jsonl", [Line.model_validate({**others[0].model_dump(), "of a later version": 1})])
    assert json.loads((tmp_path / "again.jsonl").read_text())["of a later version"] == 1


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_a_last_line_that_is_not_whole_is_dropped_with_a_warning(study, tmp_path, cut):
    path, lines = tmp_path / "results.jsonl", lines_of(study)
    append(path, lines[:2])
    whole = path.read_bytes()
    append(tmp_path / "other", lines[2:3])
    path.write_bytes(whole + (tmp_path / "other").read_bytes()[:cut])
    with pytest.warns(UserWarning, match="the last line is not whole and is dropped"):
        assert read_lines(path) == lines[:2]
    append(path, lines[2:])
    assert read_lines(path) == lines, "what was left of it is gone"


def test_a_last_line_without_its_end_is_kept(study, tmp_path):
    path, lines = tmp_path / "results.jsonl", lines_of(study)
    append(path, lines[:2])
    path.write_bytes(path.read_bytes()[:-1])
    assert read_lines(path) == lines[:2]
    append(path, lines[2:])
    assert read_lines(path) == lines


@pytest.mark.parametrize(
    "row", ["<<<<<<< ours", "{}", "[]", '{"digest": "x", "seed": 0, "metrics": {}}', "\0", "[" * 100_000, b"\xff\xfe"]
)
def test_other_damaged_lines_are_named(study, tmp_path, row):
    path, lines = tmp_path / "results.jsonl", lines_of(study)
    append(path, lines[:1])
    with path.open("ab") as file:
        file.write((row if isinstance(row, bytes) else row.encode()) + b"\n\n")
    append(path, lines[1:])
    with pytest.warns(UserWarning, match=r"results\.jsonl: line 2 is damaged"):
        assert read_lines(path) == lines


def test_joined_files_have_each_run_once_and_name_what_differs(study, tmp_path):
    lines = lines_of(study)
    digests = {line.digest for line in lines}
    other = lines[0].model_copy(update={"metrics": {"accuracy": 0.9, "nll": 1.0, "ece": 0.1}})
    stranger = lines[1].model_copy(update={"digest": "0" * 16, "metrics": {"accuracy": 0.0}})
    nan = lines[2].model_copy(update={"metrics": {"accuracy": math.nan}})
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    with pytest.warns(UserWarning, match="the first is kept") as told:
        found = join([(one, [lines[0], nan]), (two, [other, stranger, *lines[1:2], nan])], digests)
    assert [str(each.message) for each in told] == [
        f"{two}: independent, seed 0 ({lines[0].digest}) has accuracy 0.9, not 0.5 as a line before it; "
        "the first is kept"
    ]
    assert list(found) == [line.digest for line in (lines[0], lines[2], lines[1])]
    assert found[lines[0].digest].metrics == {"accuracy": 0.5, "nll": 1.0, "ece": 0.1}


def test_a_table_needs_lines_only(study, tmp_path):
    append(tmp_path / "results.jsonl", lines_of(study))
    ended = []
    table = conduct(study, tmp_path, ended=ended.append)
    assert [(run.seconds, run.fault) for run in ended] == [(0.0, None)] * 4
    assert not (tmp_path / "runs").exists()
    assert [table.cells(entry)[2] for entry in table.entries] == ["50.5 ± 0.7", "52.5 ± 0.7"]
    assert table.cells(table.entries[1])[3] == "+2.0 [+2.0, +2.0]"
    assert table.notes == ()
    assert table_of(study, tmp_path) == table


def test_lines_of_other_recipes_are_kept_and_ignored(study, tmp_path):
    longer = Study.of({**CONTENT, "changes": ["train.epochs=3"]})
    append(tmp_path / "results.jsonl", [*lines_of(longer), *lines_of(study)[:1]])
    before = (tmp_path / "results.jsonl").read_bytes()
    table = conduct(study, tmp_path, table_only=True)
    assert [entry.seeds for entry in table.entries] == [1, 0]
    assert "3 of 4 runs are missing." in table.notes
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_files_of_other_machines_and_the_one_beside_the_study_are_taken_over(study, tmp_path):
    place = tmp_path / "studies" / "tiny"
    place.mkdir(parents=True)
    text = "# mine\n" + json.dumps(CONTENT)
    (place / "study.yaml").write_text(text)
    lines = lines_of(study)
    append(place / "results.jsonl", lines[:2])
    append(tmp_path / "b.jsonl", lines[1:3])
    asked = Study.read(place / "study.yaml")
    table = conduct(asked, tmp_path / "out", results=[tmp_path / "b.jsonl"], table_only=True)
    assert [entry.seeds for entry in table.entries] == [2, 1]
    assert read_lines(tmp_path / "out" / "results.jsonl") == lines[:3]
    conduct(asked, place, results=[tmp_path / "b.jsonl"], table_only=True)
    assert read_lines(place / "results.jsonl") == lines[:3], "each once"
    assert (place / "study.yaml").read_text() == text, "the file of the study itself is left alone"
    with pytest.raises(RecipeError, match=r"none\.jsonl cannot be read: No such file"):
        Plan.of(asked, place, results=[tmp_path / "none.jsonl"])


def test_a_line_counts_if_it_has_what_is_measured(study, tmp_path):
    append(tmp_path / "results.jsonl", lines_of(study))
    more = Study.of({**CONTENT, "measure": {"robustness": ["fgsm"]}})
    assert len(Plan.of(more, tmp_path).waiting) == 4
    located = Study.of({**CONTENT, "measure": {"localization": True}})
    assert len(Plan.of(located, tmp_path).waiting) == 4
    append(tmp_path / "results.jsonl", [line.model_copy(update={"metrics": {"fgsm": 0.1}}) for line in lines_of(study)])
    assert not Plan.of(more, tmp_path).waiting
    assert table_of(more, tmp_path).entries[0].metrics["accuracy"].mean == pytest.approx(0.505), "metrics add up"


def test_rows_with_one_recipe_share_their_runs(tmp_path):
    twins = Study.of({**CONTENT, "methods": {"dml": "dml", "the same": {"name": "dml"}}, "baseline": {}})
    assert (len(twins.cells), len(twins.runs)) == (4, 2)
    append(tmp_path / "results.jsonl", lines_of(twins)[:2])
    plan = Plan.of(twins, tmp_path)
    assert (len(plan.done), len(plan.waiting)) == (2, 0)
    assert [entry.seeds for entry in table_of(twins, tmp_path).entries] == [2, 2]


def test_threads_are_those_of_the_runs_that_have_ended(study, tmp_path):
    append(tmp_path / "results.jsonl", [line.model_copy(update={"threads": 3}) for line in lines_of(study)])
    assert Plan.of(study, tmp_path).threads == 3
    assert Plan.of(study, tmp_path, threads=2).threads == 2
    assert Plan.of(study, tmp_path / "new", jobs="auto").threads == 1


def test_whole_files_warn_of_nothing(study, tmp_path):
    append(tmp_path / "results.jsonl", lines_of(study))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conduct(study, tmp_path)
