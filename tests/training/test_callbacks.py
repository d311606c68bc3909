import json

import pytest

from metamixer.evaluation.evaluate import Report
from metamixer.metrics.network_scores import Score
from metamixer.training.callbacks import EpochRecord, flat_row

VAL = Report((Score("0 a", 0.5, None, 1.5), Score("1 b", 0.75, None, 1.0)), Score("ensemble", 0.8, None, 0.9), 0.6, 20)


def record(**changes):
    values = {
        "epoch": 2, "step": 40, "lr": 0.1, "terms": {"task": [1.0, 2.0], "distill": [0.5, 0.25]},
        "train_accuracy": [0.3, 0.4], "val": VAL, "images_per_second": 900.0, "waiting": 0.25, "seconds": 3.0,
        "reading": "disk",
    }  # fmt: skip
    return EpochRecord(**{**values, **changes})


def test_the_speed_of_each_side():
    """Of four seconds one was waited: what computes is four thirds as fast, what reads four times."""
    assert record().compute_images_per_second == pytest.approx(1200)
    assert record().data_images_per_second == pytest.approx(3600)
    assert record(waiting=0.0).compute_images_per_second == 900
    assert record(waiting=0.0).data_images_per_second is None
    assert record(waiting=1.0).data_images_per_second == 900
    for reading in ("workers", ""):
        assert record(reading=reading).data_images_per_second is None
        assert "data_images_per_second" not in record(reading=reading).speed()


def test_a_row_of_a_table():
    assert record().flat() == {
        "epoch": 2, "step": 40, "lr": 0.1, "task/0": 1.0, "task/1": 2.0, "distill/0": 0.5, "distill/1": 0.25,
        "train_accuracy/0": 0.3, "train_accuracy/1": 0.4, "val/accuracy/0": 0.5, "val/nll/0": 1.5,
        "val/accuracy/1": 0.75, "val/nll/1": 1.0, "val/accuracy/ensemble": 0.8, "val/nll/ensemble": 0.9,
        "val/agreement": 0.6, "images_per_second": 900.0, "compute_images_per_second": 1200.0,
        "data_images_per_second": 3600.0, "waiting": 0.25, "seconds": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"val": None}, {"skipped": 3}, {"reading": ""}, {"strength": 0.5, "overfitting": 0.25}, {"strength": 0.0}],
    ids=str,
)
def test_the_row_of_a_line_that_was_written(changes):
    made = record(**changes)
    row = flat_row(json.loads(json.dumps(made.as_dict())))
    assert row == made.flat()
    assert any(name.startswith("val/") for name in row) == (made.val is not None)
    assert row.get("skipped", 0) == made.skipped
    assert (row.get("strength"), row.get("overfitting")) == (made.strength, made.overfitting)
