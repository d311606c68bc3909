"""How long the rest of a study takes, against times that are set by hand."""

import pytest

from metamixer.studies import Study
from metamixer.studies.estimate import Left, cost_of, left
from metamixer.studies.results import Line
from tests.studies.test_results import CONTENT


def line(cell, measure, seconds, beside=0.0, **more):
    found = {"threads": 1, "machine": "M", "epochs": cell.recipe.train.epochs, "row": dict(cell.row)} | more
    return Line(
        seed=cell.seed,
        digest=cell.digest,
        metrics={},
        seconds=seconds,
        process_seconds=seconds + beside,
        cost=cost_of(cell.recipe, measure),
        **found,
    )


def remaining(study, lines, done=0, jobs=1, **elapsed):
    cells = study.cells[done:]
    took = {cells[int(key[1:])].digest: value for key, value in elapsed.items()}
    measure = study.content.measure
    return left(cells, measure, lines, jobs=jobs, threads=1, machine="M", elapsed=took)


def test_runs_of_the_same_method_count_first():
    study = Study.of(CONTENT)  # independent 0, 1; dml 0, 1
    measure = study.content.measure
    assert remaining(study, []) == Left(4, None, 4)
    assert str(remaining(study, [])) == "unknown until the first run has ended"
    lines = [line(study.cells[0], measure, 100)]
    assert remaining(study, lines, done=1) == Left(3, 300, 0)
    lines.append(line(study.cells[2], measure, 40))
    assert remaining(study, lines, done=1) == Left(3, 100 + 40 + 40, 0)
    assert remaining(study, lines, done=1, jobs=2) == Left(3, 100, 0), "the longest one is not shared"
    assert remaining(study, lines, done=1, _0=70.0, _1=99.0) == Left(3, 30 + 0 + 40, 0)
    assert str(remaining(study, lines, done=1)) == "about 3 min"


def test_epochs_are_scaled_and_what_is_beside_them_is_not():
    study, longer = Study.of(CONTENT), Study.of({**CONTENT, "changes": ["train.epochs=20"]})
    measure = study.content.measure
    lines = [line(study.cells[0], measure, 30, beside=7)]
    assert remaining(longer, lines) == Left(4, 4 * (300 + 7), 0)
    # Several processes made it, so nobody knows what starting took.
    lines.append(line(study.cells[2], measure, 20).model_copy(update={"process_seconds": None}))
    assert remaining(longer, lines) == Left(4, 2 * (300 + 7) + 2 * (200 + 7), 0)


@pytest.mark.parametrize("other", [{"threads": 2}, {"machine": "N"}, {"epochs": None}, {"cost": "another"}], ids=str)
def test_runs_elsewhere_say_nothing(other):
    study = Study.of(CONTENT)
    lines = [line(study.cells[0], study.content.measure, 30).model_copy(update=other)]
    assert remaining(study, lines) == Left(4, None, 4)


def test_what_costs_differ_in():
    base = Study.of(CONTENT)

    def cost(measure=None, **changes):
        return cost_of(Study.of({**CONTENT, **changes}).cells[-1].recipe, measure or base.content.measure)

    same = cost_of(base.cells[0].recipe, base.content.measure)
    assert cost() == same
    for alike in (["train.epochs=9"], ["mixer=none"], ["loss=kdcl"], ["optim.lr=0.1"], ["data.seed=3"]):
        assert cost(changes=alike) == same, alike
    for unlike in (["peers.1.name=resnet14"], ["data.train_limit=30"], ["train.batch_size=32"], ["data.image_size=16"]):
        assert cost(changes=unlike) != same, unlike
    assert cost(base.content.measure.model_copy(update={"robustness": ("fgsm",)})) != same


def test_some_known_some_not():
    study = Study.of({**CONTENT, "networks": {"a": ["resnet8"], "b": ["resnet14"]}, "methods": ["independent"]})
    lines = [line(study.cells[0], study.content.measure, 7200)]
    found = remaining(study, lines, done=1)
    assert found == Left(3, 7200, 2)
    assert str(found) == "about 2 h 0 min and 2 runs of unknown length"
