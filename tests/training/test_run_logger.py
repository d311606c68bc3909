import csv
import json

import pytest

from metamixer.training.callbacks import EpochRecord, Start
from metamixer.training.run_logger import Files


def record(epoch, **changes):
    values = {
        "epoch": epoch, "step": 10 * epoch, "lr": 0.1 / epoch, "terms": {"task": [1.0 + epoch, 2.0]},
        "train_accuracy": [0.3, 0.4], "val": None, "images_per_second": 900.0, "waiting": 0.0, "seconds": 3.0,
    }  # fmt: skip
    return EpochRecord(**{**values, **changes})


def written(folder, records, step=0):
    files = Files(folder)
    files.on_start(Start(9, 10, step, ("0 a", "1 b")))
    for each in records:
        files.on_epoch(each)
    files.on_end()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_one_row_an_epoch(tmp_path):
    records = [record(1), record(2, skipped=4), record(3)]  # a column that not every row has
    written(tmp_path, records)
    assert lines(tmp_path) == [each.as_dict() for each in records]
    assert table(tmp_path) == [each.flat() for each in records]


@pytest.mark.parametrize("torn", ["", '{"epoch": 4, "st'])
def test_a_resumed_run_drops_what_came_after_the_checkpoint(torn, tmp_path):
    written(tmp_path, [record(1), record(2), record(3)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)  # by a process that was killed
    again = [record(3, lr=0.5), record(4)]
    written(tmp_path, again, step=25)
    wanted = [record(1), record(2), *again]
    assert lines(tmp_path) == [each.as_dict() for each in wanted]
    assert table(tmp_path) == [each.flat() for each in wanted]


def test_before_the_first_epoch_there_is_no_table(tmp_path):
    written(tmp_path, [])
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert not (tmp_path / "metrics.csv").exists()
